"""`checkpoint verify`: is a checkpoint what it says, and could a run go on from it? One parameter at a time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import DownloadColumn

from sparse_pretrain.checkpoint.coverage import (
    ShardIndex,
    by_parameter,
    problem_with_spans,
    read_index,
)
from sparse_pretrain.checkpoint.folder import one_line, read_config
from sparse_pretrain.checkpoint.inspect import layer_row, share
from sparse_pretrain.checkpoint.integrity import THREADS, Manifest, problem_with_file, read_manifest
from sparse_pretrain.checkpoint.layout import (
    MANIFEST,
    MODEL,
    STATE,
    STEP_NAME,
    WEIGHTS,
    checkpoints_of,
    saved_steps,
    step_folder,
    weight_file,
)
from sparse_pretrain.checkpoint.listing import aligned, say
from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.checkpoint.release import candidate_classes, mismatch
from sparse_pretrain.checkpoint.shards import MASTER, FragmentReader
from sparse_pretrain.checkpoint.store import read_masks
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, show_bytes
from sparse_pretrain.models.projections import is_projection
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.telemetry.bar import progress_bar

Report = dict[str, Any]

# Adam's, as the engine calls them (which is not imported here: it needs DeepSpeed).
MOMENTS = ("exp_avg", "exp_avg_sq")
RANDOM_STATE = "random_cpu"
STATE_KEYS = ("step", "run", "world_size", "optimizer_steps", "pruner", "masks")


class Finding(NamedTuple):
    """Something that is wrong.

    Attributes:
        check: `files`, `shards`, `fragments`, `moments`, `model`, `masters`, `masks` or `freeze`.
        problem: one line that names the file or the parameter.
    """

    check: str
    problem: str


def choose(path: Path, every: bool = False) -> list[Path]:
    """Return the checkpoints to look at: one, given it; the newest of a run, or with `every` all of them.

    Raises:
        UserError: there is none.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a checkpoint or a run folder")
    if STEP_NAME.fullmatch(path.resolve().name):
        # Also without its manifest: that is then what is wrong with it.
        return [path]
    folder = checkpoints_of(path)
    steps = saved_steps(folder)
    return [step_folder(folder, step) for step in (steps if every else steps[-1:])]


def verify(folder: Path, console: Console) -> Report:
    """Look at everything that a checkpoint holds.

    Args:
        folder: the checkpoint.
        console: shows how far it is, when it is a terminal.

    Returns:
        JSON-able: `source`, `ok`, `findings` (check and problem), `files`, `bytes`, `ranks`, `parameters`,
        `kinds` (of fragments), `frozen` (None without pruning), `layers` and `prunable` (zeros that the masks
        make, as `inspect` shows them). What could not be looked at is missing from the last six.
    """
    report: Report = {"source": str(folder), "ok": False, "findings": []}
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return report | {"findings": [Finding("files", str(error))._asdict()]}
    findings = [*problems_with_files(folder, manifest, console), *unlisted_files(folder, manifest)]
    report.update(files=len(manifest.files), bytes=manifest.total_bytes, ranks=manifest.ranks)
    state: dict[str, Any] = {}
    shards: list[ShardIndex] = []
    try:
        state = read_state(folder)
        shards = [read_index(path) for path in sorted((folder / WEIGHTS).iterdir())]
        findings += problems_with_shards(shards, manifest, state)
    except (UserError, OSError) as error:
        findings.append(Finding("shards", f"{error}: weights and masks were not looked at"))
        shards = []
    if shards:
        report.update(
            parameters=len(shards[0].shapes), kinds=sorted({kind for kind, _ in by_parameter(shards)})
        )
        masks, found = checked_masks(folder, shards[0], state)
        findings += found + problems_with_model(folder, shards[0])
        covered = problems_with_fragments(shards, state)
        findings += covered
        if not covered:
            frozen = None if state["pruner"] is None else bool(state["pruner"]["frozen"])
            layers, found = look_at_values(folder, masks, bool(frozen), console)
            findings += found
            zeros = share(sum(row["weights"] for row in layers), sum(row["zeros"] for row in layers))
            report.update(frozen=frozen, layers=layers, prunable=zeros)
    return report | {"ok": not findings, "findings": [finding._asdict() for finding in findings]}


# --- files --------------------------------------------------------------------------------------------


def problems_with_files(folder: Path, manifest: Manifest, console: Console) -> list[Finding]:
    """Compare every file with its checksum; unlike `integrity.problem_with`, name all that differ."""
    bar = progress_bar(console, DownloadColumn(), transient=True)
    with bar, ThreadPoolExecutor(THREADS) as pool:
        task = bar.add_task("checksums", total=manifest.total_bytes, numbers=folder.name)
        jobs = {
            pool.submit(problem_with_file, folder, name, facts): name
            for name, facts in manifest.files.items()
        }
        found = {}
        for job in as_completed(jobs):
            found[jobs[job]] = job.result()
            bar.advance(task, manifest.files[jobs[job]].bytes)
    return [Finding("files", problem) for _, problem in sorted(found.items()) if problem is not None]


def unlisted_files(folder: Path, manifest: Manifest) -> list[Finding]:
    """Find files that the manifest does not know: no save of ours wrote them."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [
        Finding("files", f"{name} is not in {MANIFEST}")
        for name in names
        if name != MANIFEST and name not in manifest.files
    ]


# --- headers ------------------------------------------------------------------------------------------


def read_state(folder: Path) -> dict[str, Any]:
    """Read `state.json` as far as it is needed here.

    Raises:
        UserError: it is missing, no JSON, or something else.
    """
    state = read_json(folder / STATE)
    missing = [key for key in STATE_KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise UserError(f"{folder / STATE}: has no {missing[0]}")
    return dict(state)


def problems_with_shards(
    shards: Sequence[ShardIndex], manifest: Manifest, state: dict[str, Any]
) -> list[Finding]:
    """Compare what the shards say of themselves with each other, with the manifest and with the state."""
    found = []
    expected = [weight_file(Path(), rank).name for rank in range(manifest.ranks)]
    if [shard.path.name for shard in shards] != expected:
        found.append(f"{WEIGHTS} holds {len(shards)} shards, {manifest.ranks} ranks wrote the checkpoint")
    if (state["step"], state["run"], state["world_size"]) != (manifest.step, manifest.run, manifest.ranks):
        found.append(f"{STATE} is of another step, run or number of ranks than {MANIFEST}")
    origin = f"run {manifest.run}, step {manifest.step}"
    for shard in shards:
        name = f"{WEIGHTS}/{shard.path.name}"
        if shard.origin != origin:
            found.append(f"{name} belongs to {shard.origin}, the checkpoint is {origin}")
        if shard.shapes != shards[0].shapes:
            names = sorted(shard.shapes.keys() | shards[0].shapes.keys())
            other = next(each for each in names if shard.shapes.get(each) != shards[0].shapes.get(each))
            found.append(f"{name} has another shape of {other} than {shards[0].path.name}")
        if RANDOM_STATE not in shard.extras:
            found.append(f"{name} has no random-number state ({RANDOM_STATE})")
    return [Finding("shards", problem) for problem in found]


def problems_with_fragments(shards: Sequence[ShardIndex], state: dict[str, Any]) -> list[Finding]:
    """Check that the ranks' fragments make up every master and moment exactly once, and nothing else."""
    shapes = {name: torch.Size(shape) for name, shape in shards[0].shapes.items()}
    spans = by_parameter(shards)
    findings = []
    for kind, name in sorted(spans.keys() | {(MASTER, name) for name in shapes}):
        if name not in shapes:
            findings.append(Finding("fragments", f"{kind}/{name}: a fragment of no parameter"))
        elif problem := problem_with_spans(spans.get((kind, name), []), shapes[name].numel()):
            findings.append(Finding("fragments", f"{kind}/{name}: {problem}"))
    wanted = MOMENTS if state["optimizer_steps"] else ()
    for kind in MOMENTS:
        without = [name for name in sorted(shapes) if (kind, name) not in spans]
        if kind in wanted and without:
            findings.append(
                Finding(
                    "moments", f"{kind}: missing for {len(without)} of {len(shapes)} parameters: {without[0]}"
                )
            )
        if kind not in wanted and len(without) < len(shapes):
            findings.append(Finding("moments", f"{kind}: there, but the optimizer has not made a step"))
    return findings


def problems_with_model(folder: Path, shard: ShardIndex) -> list[Finding]:
    """Check that a class of the saved architecture has exactly these weights, as a release needs it."""
    weights = {
        name: torch.empty(shape, device="meta")
        for name, shape in shard.shapes.items()
        if not is_projection(name)
    }
    try:
        config = read_config(str(folder / MODEL))
    except UserError as error:
        return [Finding("model", str(error))]
    problems: list[str | None] = []
    for factory in candidate_classes(config):
        try:
            with torch.device("meta"), quiet_libraries():
                problems.append(mismatch(factory(config), weights))
        except Exception as error:  # whatever an architecture says of a config that makes no model
            problems.append(one_line(error))
    if None in problems:
        return []
    return [
        Finding("model", f"{MODEL}/config.json is of another model: {problems[0] if problems else 'unknown'}")
    ]


def checked_masks(
    folder: Path, shard: ShardIndex, state: dict[str, Any]
) -> tuple[MaskSet | None, list[Finding]]:
    """Read the masks, one bit a weight; return those that fit, and what is wrong."""
    try:
        whole = read_masks(folder)
    except UserError as error:
        return None, [Finding("masks", str(error))]
    found = []
    if whole is None:
        if state["pruner"] is not None:
            found.append(f"{MASK_FILE} is missing, although the run prunes")
        return None, [Finding("masks", problem) for problem in found]
    masks = whole.packed_copy()
    if masks.digest() != state["masks"]:
        found.append(f"{MASK_FILE}: not the masks of {STATE} (their digest differs)")
    fitting = {}
    for name, shape in masks.shapes.items():
        if list(shape) == shard.shapes.get(name):
            fitting[name] = masks[name]
        elif name in shard.shapes:
            found.append(f"{MASK_FILE}: {name} is {list(shape)} there, the weight is {shard.shapes[name]}")
        else:
            found.append(f"{MASK_FILE}: {name} is no parameter of the model")
    if len(fitting) < len(masks):
        masks = MaskSet(fitting, packed=True)
    return masks, [Finding("masks", problem) for problem in found]


# --- values -------------------------------------------------------------------------------------------


def look_at_values(
    folder: Path, masks: MaskSet | None, frozen: bool, console: Console
) -> tuple[list[Report], list[Finding]]:
    """Read every master, behind the freeze also the moments of what is pruned; one parameter at a time.

    Returns:
        A row for each prunable weight, and what is wrong.
    """
    try:
        reader = FragmentReader(sorted((folder / WEIGHTS).iterdir()))
    except UserError as error:
        return [], [Finding("shards", str(error))]
    rows: list[Report] = []
    findings: list[Finding] = []
    with progress_bar(console, transient=True) as bar:
        task = bar.add_task("values", total=len(reader.shapes), numbers="")
        for name in reader.shapes:
            mask = masks[name] if masks is not None and name in masks else None
            try:
                master = reader.whole(MASTER, name)
                findings += problems_with_master(name, master)
                if mask is not None:
                    rows.append(layer_row(name, master, mask, dense_master=True))
                if mask is not None and frozen:
                    findings += problems_behind_freeze(reader, name, master, ~mask)
            except (UserError, RuntimeError, IndexError, ValueError) as error:
                findings.append(Finding("fragments", f"{name}: cannot be read ({one_line(error)})"))
            bar.advance(task)
    return rows, findings


def problems_with_master(name: str, master: torch.Tensor) -> Iterator[Finding]:
    """Count values that are NaN or infinite."""
    if count := int(torch.count_nonzero(~torch.isfinite(master))):
        yield Finding("masters", f"{name}: {count:,} values are NaN or infinite")


def problems_behind_freeze(
    reader: FragmentReader, name: str, master: torch.Tensor, pruned: torch.Tensor
) -> Iterator[Finding]:
    """Count what is not exactly zero although its weight is pruned for good."""
    reads: dict[str, Callable[[], torch.Tensor]] = {MASTER: lambda: master}
    for kind in MOMENTS:
        if reader.has(kind, name):
            reads[kind] = lambda kind=kind: reader.whole(kind, name)  # type: ignore[misc]
    for kind, read in reads.items():
        if count := int(torch.count_nonzero(read()[pruned])):
            yield Finding("freeze", f"{kind}/{name}: {count:,} values outside the frozen mask are not zero")


# --- for people ---------------------------------------------------------------------------------------


def render(report: Report, console: Console, table: bool = True) -> None:
    """Print a line for each finding, or that there are none; before it the sparsity of each weight."""
    if table and report.get("layers"):
        for line in sparsity_lines(report):
            say(console, line)
    for finding in report["findings"]:
        say(console, f"{report['source']}: {finding['check']}: {finding['problem']}")
    if report["ok"]:
        masks = {None: "no pruning", False: "masks still open", True: "masks frozen, zeros exact"}
        say(
            console,
            f"{report['source']}: whole: {report['files']} files ({show_bytes(report['bytes'])}) match their "
            f"checksums; {report['parameters']} parameters, each exactly once ({', '.join(report['kinds'])}); "
            f"all finite; {masks[report['frozen']]}",
        )


def sparsity_lines(report: Report) -> list[str]:
    """Return a line for each prunable weight, and one for all of them."""
    rows = [*report["layers"], {"name": "all prunable weights", "shape": [], **report["prunable"]}]
    lines = [("weight", "shape", "weights", "zeros", "sparsity")]
    for row in rows:
        shape = " x ".join(map(str, row["shape"])) or "-"
        lines.append(
            (row["name"], shape, f"{row['weights']:,}", f"{row['zeros']:,}", f"{row['sparsity']:.4%}")
        )
    return aligned(lines)
