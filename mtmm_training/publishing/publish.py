"""From a run's folder to the Hub: stage, load in isolation, upload, load back from the Hub.

    python -m mtmm_training.publishing.publish out/run someone/mtmm --licence cc-by-nc-4.0 --tag v1
    python -m mtmm_training.publishing.publish out/run someone/mtmm --dry_run

What is uploaded is on an allow-list; predictions, logs, paths and speakers stay at home. The card is
filled from results.json by the template in model_card/.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    HfApi,
)

from modeling_mtmm import MTMMModel
from mtmm_training.files import writing
from mtmm_training.publishing.card import stage_papers
from mtmm_training.publishing.hub import _token, check_target, load_back, print_plan, upload
from mtmm_training.publishing.isolation import (
    MERGING_TOLERANCE,
    Example,
    compare,
    probe_utterances,
    reference_outputs,
    run_isolated,
    trainer_predictions,
)
from mtmm_training.publishing.publication import Publication, add_arguments, read_results
from mtmm_training.publishing.stage import (
    allowed_files,
    copy_files,
    private_folders,
    refuse_private_text,
    stage_model,
)


def publish(options: Publication, api: HfApi | None = None) -> CommitInfo | None:
    """Stage, check, upload, and check what came back.

    Args:
        options: See [`Publication`].
        api: Of the Hub to use; the environment's if not given.

    Returns:
        The commit; None for a dry run.

    Raises:
        ValueError: An option that is not allowed; outputs that differ; private text in a file.
        FileNotFoundError: The run is not complete.
        PermissionError: The Hub refuses the token, or the token may not write there.
        ConnectionError: The Hub cannot be reached, or the upload broke off.
        OSError: The disk is full: of temporary files (TMPDIR says where they are), or of `out`.
    """
    options.check()
    api = api or HfApi()
    if not options.dry_run:
        check_target(api, options)  # before the work, not after it
    with tempfile.TemporaryDirectory() as scratch, writing(scratch):
        work = Path(scratch)
        folder = work / "staged"
        folder.mkdir()
        results = read_results(options.run)
        model, processor = stage_model(api, options, results, folder)
        utterances = probe_utterances(work)
        expected = reference_outputs(model, processor, utterances)
        if options.adapter:
            merged = MTMMModel.from_pretrained(Path(options.run) / "model").eval()
            merged_outputs = reference_outputs(merged, processor, utterances)
            subject = f"The adapter on {options.base_model[0]}"
            compare(merged_outputs, expected, subject, MERGING_TOLERANCE)
        example = Example.of(options, results, processor)
        recorded = trainer_predictions(options, results, work)
        outputs, printed = run_isolated(
            api, options, example, str(folder), utterances + recorded.utterances, work
        )
        compare(expected, outputs[: len(expected)], "The staged folder")
        recorded.compare(outputs[len(expected) :])
        stage_papers(
            options, results, model.config, example.shown(options.repo_id), printed, folder
        )
        if options.out is not None:
            copy_files(folder, Path(options.out))
        files = allowed_files(folder)
        refuse_private_text(folder, files, private_folders(options), _token(api))
        print_plan(options, folder, files)
        if options.dry_run:
            return None
        commit = upload(api, options, folder, files)
        print(f"uploaded: {commit.commit_url}", flush=True)
        back = load_back(api, options, commit, work)
        outputs, _ = run_isolated(
            api, options, example, back, utterances, work, revision=commit.oid
        )
        compare(expected, outputs, f"The model at commit {commit.oid}")
        print(f"loaded back at {commit.oid[:12]}: same outputs as before the upload", flush=True)
        return commit


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mtmm_training.publishing.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    try:
        publish(Publication(**vars(parser.parse_args(arguments))))
    except (ValueError, OSError) as error:  # OSError: files, permissions and the network
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
