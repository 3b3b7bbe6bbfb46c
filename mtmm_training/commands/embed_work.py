"""What `mtmm embed` does: the pipeline's embeddings, batch by batch into one Parquet file."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from embedding_mtmm import EMBEDDINGS
from mtmm_training.commands.predict_inputs import Input
from mtmm_training.commands.predict_output import entries, timed
from mtmm_training.commands.predict_work import (
    load_pipeline,
    pipeline_options,
    predict_each,
    read_given,
)
from mtmm_training.data.files import replacing
from mtmm_training.training.ending import FAILED, GOOD

ROWS = 256  # to a group of the file


def write_embeddings(given: argparse.Namespace) -> int:
    """Embeds every input; the exit status says whether all could be read."""
    import pyarrow.parquet  # before any work: it comes with the training extra

    inputs, pipe = read_given(given), load_pipeline(given)
    options = pipeline_options(given, pipe, inputs) | {"embedding": True}
    number, vector = pyarrow.float64(), pyarrow.list_(pyarrow.float32())
    fields = [("id", pyarrow.string()), ("start", number), ("end", number)]
    schema = pyarrow.schema([*fields, *((name, vector) for name in EMBEDDINGS)])
    failed, rows, total = 0, list[dict[str, Any]](), 0
    with (
        replacing(given.out) as unfinished,
        pyarrow.parquet.ParquetWriter(unfinished, schema) as file,
    ):
        for one, answer in predict_each(pipe, inputs, options):
            if "error" in answer:
                failed += 1
            else:
                rows += rows_of(one, answer, given.timeline)
            if len(rows) >= ROWS:
                file.write_table(pyarrow.Table.from_pylist(rows, schema))
                total, rows = total + len(rows), []
        file.write_table(pyarrow.Table.from_pylist(rows, schema))
    print(
        f"{given.out}: {total + len(rows)} rows of {len(inputs) - failed} inputs; {failed} failed"
    )
    return FAILED if failed else GOOD


def rows_of(one: Input, answer: Mapping[str, Any], timeline: bool) -> Iterator[dict[str, Any]]:
    """The rows of one input, or of its windows."""
    for entry in entries(answer) if timeline else [answer]:
        times = entry if "start" in entry else timed(one, dict(answer))
        yield {"id": one.name, "start": times.get("start"), "end": times.get("end")} | {
            name: entry["embedding"][name] for name in EMBEDDINGS
        }
