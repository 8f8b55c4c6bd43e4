"""`gr4ad bench`: measured figures of single parts, beside what they compete with in the same run."""

from __future__ import annotations

import typer

from gr4ad_tools.bench.beams import beams_command
from gr4ad_tools.bench.cache.command import cache_command
from gr4ad_tools.bench.codebook import codebook_command
from gr4ad_tools.bench.decode.command import decode_command
from gr4ad_tools.bench.embedding import embedding_command
from gr4ad_tools.bench.index import index_command
from gr4ad_tools.bench.ingest import ingest_command
from gr4ad_tools.bench.recall.command import recall_command
from gr4ad_tools.bench.serve.command import serve_command

app = typer.Typer(no_args_is_help=True)
app.command("beams")(beams_command)
app.command("cache")(cache_command)
app.command("codebook")(codebook_command)
app.command("decode")(decode_command)
app.command("embedding")(embedding_command)
app.command("index")(index_command)
app.command("ingest")(ingest_command)
app.command("recall")(recall_command)
app.command("serve")(serve_command)


@app.callback()
def _group() -> None:
    """Measure single parts beside what they compete with."""
