"""From a run's folder to the Hub: stage, load in isolation, upload, load back from the Hub."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from mtmm_training.data.files import writing
from mtmm_training.publishing import isolation, stage
from mtmm_training.publishing.card import Facts, Subject, make_card, read_folds
from mtmm_training.publishing.hub import Target, check_target, hub_errors, plan, upload
from mtmm_training.training.run import Run


def publish(
    run: str | Path,
    target: Target,
    facts: Facts | None = None,
    *,
    adapter: bool = False,
    heads_only: bool = False,
    endpoint: bool = False,
    dry_run: bool = False,
    out: str | Path | None = None,
    api: HfApi | None = None,
) -> CommitInfo | None:
    """Stage, check, upload, and check what came back.

    Args:
        run: folder of a finished run.
        target: where to.
        facts: what the card says and no run can know.
        adapter: publish a LoRA run's adapter alone; `facts.base_model` then names the one model on
            the Hub that it was trained on. Else the whole model, LoRA's adapters merged into it.
        heads_only: publish fusion and heads alone; `facts.base_model` then names the audio and the text
            encoder on the Hub, if the run's own names are of folders.
        endpoint: also what the Hub's Inference Endpoints call, handler.py.
        dry_run: stage, check, and list what would go where; upload nothing.
        out: folder that keeps the staged files, to look at.
        api: of the Hub to use; the environment's if not given.

    Returns:
        The commit; None for a dry run.

    Raises:
        ValueError: outputs differ; a file holds private text; a public repository is not private.
        FileNotFoundError: the run is not complete.
        PermissionError: the Hub refuses the token, or the token may not write there.
        ConnectionError: the Hub cannot be reached, or the upload broke off.
        OSError: the disk is full: of temporary files (TMPDIR says where they are), or of `out`.
    """
    finished, facts, api = Run.open(run), facts or Facts(), api or HfApi()
    folds = read_folds(finished, facts.folds)
    if not dry_run:
        check_target(api, target)  # before the work, not after it
    with tempfile.TemporaryDirectory() as scratch, writing(scratch):
        work = Path(scratch)
        (folder := work / "staged").mkdir()
        inputs = isolation.probes(work)
        if adapter:
            base = facts.base_model[0]
            model, processor = stage.stage_adapter(api, finished, base, folder)
            expected = isolation.outputs_here(model.get_base_model(), processor, inputs)
            merged = isolation.outputs_here(finished.model(), processor, inputs)
            what = f"The adapter on {base}"
            isolation.compare(merged, expected, what, isolation.MERGING_TOLERANCE)
        else:
            hub = None if dry_run else api
            encoders = stage.encoder_ids(finished, facts, hub) if heads_only else None
            model, processor = stage.stage_model(finished, folder, encoders)
            expected = isolation.outputs_here(model, processor, inputs)
        stage.leave_out(folder)

        # The same numbers where only the Hub's files are, and those that training wrote down.
        example = isolation.Example.of(finished, facts, processor, adapter)
        recorded = isolation.Recorded.of(finished, work, exact=not heads_only)
        both = [*inputs, *recorded.inputs]
        variables = isolation.local_encoders(finished) if heads_only else {}
        outputs, printed = isolation.run_isolated(
            api, example, str(folder), both, work, adapter=adapter, variables=variables
        )
        isolation.compare(expected, outputs[: len(inputs)], "The staged folder")
        recorded.compare(outputs[len(inputs) :])

        if endpoint:
            stage.stage_endpoint(folder)
        pictures = stage.stage_results(finished, folder, name_speakers=facts.name_speakers)
        results = stage.clean_results(finished.results)
        subject = Subject(target.repo_id, results, model.config, facts, folds, adapter)
        card = make_card(subject, pictures, example.of_model(target.repo_id), printed)
        card.save(folder / "README.md")
        stage.refuse_private_text(folder, finished.folder, api)
        if out is not None:
            shutil.copytree(folder, out, dirs_exist_ok=True)
        print(plan(target, folder, dry_run=dry_run), flush=True)
        if dry_run:
            return None
        commit = upload(api, target, folder)
        print(f"uploaded: {commit.commit_url}", flush=True)
        back = target.repo_id
        if adapter:  # transformers would look for its revision in the base's repository too
            with hub_errors(back):
                back = api.snapshot_download(back, revision=commit.oid, local_dir=work / "back")
        outputs, _ = isolation.run_isolated(
            api, example, back, inputs, work, adapter=adapter, revision=commit.oid
        )
        isolation.compare(expected, outputs, f"The model at commit {commit.oid}")
        print(f"loaded back at {commit.oid[:12]}: same outputs as before the upload", flush=True)
        return commit
