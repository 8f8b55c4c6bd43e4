import torch
from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.lazy_ar import LazyAr
from gr4ad_core.model.presets import paper_preset


def test_paper_preset_has_the_papers_shape() -> None:
    config = paper_preset((16384, 4096, 1024))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in LazyAr(config).parameters())
    assert (config.n_layers, config.n_lazy) == (9, 6)
    assert 0.15e9 < parameters < 0.17e9
    assert LazyArConfig.from_dict(config.to_dict()) == config
