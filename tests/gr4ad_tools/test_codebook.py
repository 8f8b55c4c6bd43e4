import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.data_folder import DataFolderError, read_items
from gr4ad_core.sid.codebook import load_codebook
from gr4ad_runtime.errors import AlreadyExistsError
from gr4ad_tools import codebook, codebook_fit
from gr4ad_tools.codebook_fit import FitOptions, FittedCodebook
from typer.testing import CliRunner

ITEMS = [
    {"item_id": f"{colour}-{thing}", "title": f"{colour} {thing}", "brand": "acme", "categories": ["Shop", thing]}
    for colour in ("red", "blue", "green", "grey")
    for thing in ("shoe", "hat", "scarf", "glove", "sock")
]

SMALL = FitOptions(level_sizes=(8, 4, 8))


def write_items(folder: Path, items: list[dict]) -> Path:
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return write_items(tmp_path / "data", ITEMS)


def test_publishes_what_was_fitted_and_repeats_it_exactly(data_dir: Path, artifact_store_url: str) -> None:
    steps: list[tuple[str, float]] = []
    for _ in range(2):  # the second time would be refused if a byte differed
        found = codebook_fit.fit_codebook_from_folder(
            data_dir,
            artifact_store_url,
            "spring",
            FitOptions(seed=3),
            progress=lambda step, share: steps.append((step, share)),
        )
        assert found == FittedCodebook("spring", len(ITEMS), 0)
    assert [step for step, _ in steps[:5]] == ["read", "encode", "cluster", "publish", "publish"]
    assert steps[4] == ("publish", 1.0)

    fitted = load_codebook(Path(artifact_store_url) / "codebooks" / "spring")
    assert fitted.codebook_id == "spring"
    assert fitted.level_sizes == (128, 64, 64)
    vectors = fitted.encode_ads([codebook_fit.content_of(item) for item in read_items(data_dir)])
    assert len({tuple(prefix) for prefix in fitted.quantise(vectors).tolist()}) == len(ITEMS)


def test_refuses_an_id_that_holds_another_codebook(data_dir: Path, artifact_store_url: str) -> None:
    codebook_fit.fit_codebook_from_folder(data_dir, artifact_store_url, "spring", SMALL)
    with pytest.raises(AlreadyExistsError, match="spring.*published with other content"):
        codebook_fit.fit_codebook_from_folder(data_dir, artifact_store_url, "spring", FitOptions(level_sizes=(4, 4, 8)))


@pytest.mark.parametrize("codebook_id", ["", "../up", ".hidden", "a/b", "x" * 129])
def test_refuses_an_id_that_the_contract_would_refuse(
    data_dir: Path, artifact_store_url: str, codebook_id: str
) -> None:
    with pytest.raises(ValueError, match="codebook_id: .*: use 1 to 128 letters"):
        codebook_fit.fit_codebook_from_folder(data_dir, artifact_store_url, codebook_id, FitOptions())


def test_bad_data_publishes_nothing(tmp_path: Path, artifact_store_url: str) -> None:
    folder = write_items(tmp_path / "data", [*ITEMS, ITEMS[0]])
    with pytest.raises(DataFolderError, match="red-shoe"):
        codebook_fit.fit_codebook_from_folder(folder, artifact_store_url, "spring", FitOptions())
    assert list(Path(artifact_store_url).iterdir()) == []


def test_command_fits_and_says_where(data_dir: Path, artifact_store_url: str) -> None:
    command = ["fit", str(data_dir), "--artifacts", artifact_store_url, "--id", "c1", "--level-sizes", "8,4,16"]
    command += ["--work", str(data_dir.parent / "work")]
    result = CliRunner().invoke(codebook.app, command)
    assert result.exit_code == 0, result.output
    assert "published codebooks/c1" in result.output
    assert load_codebook(Path(artifact_store_url) / "codebooks" / "c1").level_sizes == (8, 4, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level-sizes", "8,x"], "level_sizes: 8,x: give whole numbers"),
        (["--level-sizes", "8"], "two or more levels"),
        (["--id", "a/b"], "codebook_id: 'a/b': use 1 to 128 letters"),
    ],
)
def test_command_names_field_value_and_remedy(
    data_dir: Path, artifact_store_url: str, options: list[str], message: str
) -> None:
    command = ["fit", str(data_dir), "--artifacts", artifact_store_url, "--work", str(data_dir.parent / "work")]
    result = CliRunner().invoke(codebook.app, [*command, *options])
    assert result.exit_code == 1
    assert message in result.output


class SidStandIn(sid_pb2_grpc.SidServiceServicer):
    """Knows two codebooks, of which one was activated."""

    def __init__(self) -> None:
        self.active = "old"

    async def ActivateCodebook(
        self, request: sid_pb2.ActivateCodebookRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.ActivateCodebookResponse:
        if request.codebook_id not in ("old", "new"):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"codebook_id: {request.codebook_id}: publish it first")
        self.active = request.codebook_id
        return sid_pb2.ActivateCodebookResponse(codebook=self._codebook(request.codebook_id))

    async def RegisterCodebook(
        self, request: sid_pb2.RegisterCodebookRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.RegisterCodebookResponse:
        return sid_pb2.RegisterCodebookResponse(codebook=self._codebook(request.codebook_id))

    async def ListCodebooks(
        self, request: sid_pb2.ListCodebooksRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.ListCodebooksResponse:
        return sid_pb2.ListCodebooksResponse(codebooks=[self._codebook("new"), self._codebook("old")])

    async def RetireCodebook(
        self, request: sid_pb2.RetireCodebookRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.RetireCodebookResponse:
        retired = sid_pb2.Codebook(codebook_id=request.codebook_id, state=sid_pb2.CODEBOOK_STATE_RETIRED)
        return sid_pb2.RetireCodebookResponse(codebook=retired)

    async def GetCodebookDrift(
        self, request: sid_pb2.GetCodebookDriftRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.GetCodebookDriftResponse:
        if request.codebook_id == "old":  # it does not know what its fit left over
            return sid_pb2.GetCodebookDriftResponse(codebook_id="old", ads=9, spilled_share=0.01, fullest_prefix=0.95)
        return sid_pb2.GetCodebookDriftResponse(
            codebook_id="new", ads=9, error_ratio=1.1, far_share=0.02, spilled_share=0.01, fullest_prefix=0.5
        )

    def _codebook(self, codebook_id: str) -> sid_pb2.Codebook:
        state = sid_pb2.CODEBOOK_STATE_ACTIVE if codebook_id == self.active else sid_pb2.CODEBOOK_STATE_STANDBY
        return sid_pb2.Codebook(codebook_id=codebook_id, level_sizes=[8, 4, 16], embedding_dim=128, state=state)


class TrainerStandIn(training_pb2_grpc.TrainingServiceServicer):
    """Lists two policies, one a page; the older one is a channel's current one and writes the SIDs of "old"."""

    async def ListPolicies(
        self, request: training_pb2.ListPoliciesRequest, context: grpc.aio.ServicerContext
    ) -> training_pb2.ListPoliciesResponse:
        newer = training_pb2.Policy(policy=type_pb2.PolicyRef(policy_id="p2", codebook_id="new"), channels=["canary"])
        older = training_pb2.Policy(policy=type_pb2.PolicyRef(policy_id="p1", codebook_id="old"), channels=["stable"])
        if request.page_token:
            return training_pb2.ListPoliciesResponse(policies=[older])
        return training_pb2.ListPoliciesResponse(policies=[newer], next_page_token="more")


@pytest.fixture
async def sid_assigner() -> AsyncIterator[str]:
    server = grpc.aio.server()
    sid_pb2_grpc.add_SidServiceServicer_to_server(SidStandIn(), server)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(TrainerStandIn(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_activates_and_lists(sid_assigner: str) -> None:
    activated = await codebook.activate_codebook(sid_assigner, "new")
    assert (activated.codebook_id, activated.state) == ("new", sid_pb2.CODEBOOK_STATE_ACTIVE)
    listed = await codebook.list_codebooks(sid_assigner)
    assert [(found.codebook_id, found.state) for found in listed] == [
        ("new", sid_pb2.CODEBOOK_STATE_ACTIVE),
        ("old", sid_pb2.CODEBOOK_STATE_STANDBY),
    ]


async def test_an_unknown_codebook_is_the_service_s_to_refuse(sid_assigner: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="codebook_id: lost: publish it first"):
        await codebook.activate_codebook(sid_assigner, "lost")


async def test_register_says_where_the_codebook_is_in_its_life(sid_assigner: str) -> None:
    result = await asyncio.to_thread(CliRunner().invoke, codebook.app, ["register", "new", "--address", sid_assigner])
    assert result.exit_code == 0, result.output
    assert "new is standby, 8,4,16 codes" in result.output


async def test_retire_refuses_what_any_channel_needs(sid_assigner: str) -> None:
    command = ["retire", "old", "--address", sid_assigner, "--trainer", sid_assigner]
    refused = await asyncio.to_thread(CliRunner().invoke, codebook.app, command)
    assert refused.exit_code == 1
    assert "old: the current policies of stable need it" in refused.output
    forced = await asyncio.to_thread(CliRunner().invoke, codebook.app, [*command, "--force"])
    assert (forced.exit_code, forced.output) == (0, "old is retired\n")


async def test_drift_gives_null_for_what_is_not_known(sid_assigner: str) -> None:
    async def drift(*options: str) -> str:
        command = ["drift", *options, "--address", sid_assigner]
        result = await asyncio.to_thread(CliRunner().invoke, codebook.app, command)
        assert result.exit_code == 0, result.output
        return result.output

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    old = json.loads(await drift("old", "--json"), parse_constant=no_constant)
    assert (old["error_ratio"], old["far_share"], old["refit_for"]) == (None, None, ["fullest_prefix"])
    new = json.loads(await drift("new", "--json"), parse_constant=no_constant)
    assert (new["error_ratio"], new["refit_for"]) == (1.1, [])
    assert "refit: fullest_prefix; unknown: error_ratio, far_share" in await drift("old")
    assert "the newest 9 ads: no need to refit\n" in await drift("new")
