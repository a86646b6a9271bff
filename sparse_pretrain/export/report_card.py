"""The report in words: a table or two for a model card, and sentences that say what zeros did for speed."""

from typing import Any

Facts = dict[str, Any]
# Medians of interleaved calls on a busy machine differ by a few per cent for no reason.
NOISE = 0.10
# With fewer calls of each, nothing is said about speed.
LEAST_CALLS = 5
WHAT_WOULD = (
    "What would make zeros fast: a 2:4 pattern (`pruning.structure.kind=n_of_m`) on an NVIDIA GPU from Ampere on, with "
    "TensorRT or torch's semi-structured kernels; pruned rows, columns or heads, removed from the matrices; int8 "
    "weights on a CPU with AMX by OpenVINO's sparse-weights setting, where reading weights is what takes the time "
    "(batch 1, large model). Scattered zeros save space, not time, in kernels for dense matrices."
)


def findings(facts: Facts) -> list[str]:
    """Return the sentences of a report: the speed of sparse against dense, and the quickest way to run it."""
    rows = [row for row in facts["times"] if row["model"] != row["compared_with"]]
    if min(row["sparse"]["calls"] for row in facts["times"]) < LEAST_CALLS:
        return ["Too few calls to say anything about speed: the times only show that every engine runs."]
    sentences = []
    faster = [row for row in rows if beyond_noise(row) > 0]
    slower = [row for row in rows if beyond_noise(row) < 0]
    if rows:
        ratios = sorted(row["speedup"] for row in rows)
        sentences.append(
            f"Sparse against dense, {len(rows)} comparisons: {ratios[0]:.2f} to {ratios[-1]:.2f} x as fast, "
            f"median {ratios[len(ratios) // 2]:.2f}."
        )
    for kind, found in (("faster", faster), ("slower", slower)):
        if found:
            sentences.append(
                f"More than {NOISE:.0%} {kind}: "
                + "; ".join(
                    f"{row['engine']}, batch {row['batch']}, length {row['length']} ({row['speedup']:.2f} x)"
                    for row in found
                )
                + "."
            )
    if rows and len(faster) * 2 < len(rows):
        start = (
            "On this machine the zeros give no speed" if not faster else "Mostly the zeros give no speed here"
        )
        sentences.append(f"{start}: the engines multiply by them like by any number. {WHAT_WOULD}")
    return [*sentences, *engine_gains(facts)]


def beyond_noise(row: Facts) -> int:
    """Return 1 where sparse is faster, -1 where it is slower, 0 where the two cannot be told apart.

    Medians and fastest calls must agree: other work on the machine moves medians, and hardly ever the fastest call.
    """
    ratios = [row["dense"][key] / row["sparse"][key] for key in ("median_ms", "fastest_ms")]
    if min(ratios) > 1.0 + NOISE:
        return 1
    return -1 if max(ratios) < 1.0 / (1.0 + NOISE) else 0


def engine_gains(facts: Facts) -> list[str]:
    """Return, for every model, the quickest engine at each batch and length against torch."""
    sentences = []
    for model in dict.fromkeys(row["model"] for row in facts["times"]):
        rows = [row for row in facts["times"] if row["model"] == model]
        parts = []
        for batch, length in dict.fromkeys((row["batch"], row["length"]) for row in rows):
            cell = {
                row["engine"]: row["sparse"]["median_ms"]
                for row in rows
                if (row["batch"], row["length"]) == (batch, length)
            }
            best = min(cell, key=lambda engine: cell[engine])
            parts.append(
                f"batch {batch}, length {length}: {best}, {cell['torch'] / cell[best]:.1f} x as fast as torch"
            )
        sentences.append(f"Quickest for {model}: " + "; ".join(parts) + ".")
    return sentences


def markdown(facts: Facts) -> str:
    """Return the report as Markdown for a model card."""
    computer = facts["machine"]
    lines = ["# Size and speed", ""]
    lines += [
        f"{computer['processor']} ({', '.join(computer['instructions']) or 'no vector instructions known'}), "
        f"{computer['threads']} threads; "
        + ", ".join(f"{n} {v}" for n, v in computer["versions"].items())
        + ". "
        f"Load of the machine at the end: {computer['load_average']:.1f}.",
        "",
    ]
    lines += ["## Findings", "", *(f"- {sentence}" for sentence in facts["findings"]), ""]
    lines += ["## Size", "", *size_table(facts), ""]
    lines += ["## Encoder compression against dense fp32", "", *compression_table(facts), ""]
    lines += ["## Answers against torch", "", *agreement_table(facts), ""]
    lines += ["## Speed", "", "![sizes and times](report.png)", "", *speed_table(facts), ""]
    return "\n".join(lines)


def size_table(facts: Facts) -> list[str]:
    """Return a row for every format, a column for every model, in MB (10^6 bytes)."""
    models = facts["models"]
    rows = [
        ["sparsity of the prunable weights", *(f"{model['sparsity']:.1%}" for model in models)],
        ["task metric", *(score(model) for model in models)],
    ]
    for engine in dict.fromkeys(engine for model in models for engine in engine_scores(model)):
        cells = (engine_scores(model).get(engine) for model in models)
        rows.append([f"task metric by {engine}", *("" if cell is None else f"{cell:.4f}" for cell in cells)])
    for name in sorted({name for model in models for name in model["bytes"]}):
        rows.append([name, *(f"{model['bytes'][name] / 1e6:.1f} MB" for model in models)])
    return table(["", *(model["label"] for model in models)], rows)


def engine_scores(model: Facts) -> dict[str, float]:
    """Return a model's task metric by engine; nothing when it was not measured."""
    found: dict[str, float] = model.get("task_metric", {}).get("scores", {})
    return found


def score(model: Facts) -> str:
    """Return a model's accuracy as text."""
    found = model.get("accuracy")
    return f"{found['metric']} {found['score']:.4f}" if found else "not known"


def compression_table(facts: Facts) -> list[str]:
    """Return the three ways to count, for every model and precision."""
    rows = [
        [
            model["label"],
            precision,
            f"{found['as_the_paper_counts']:.1f} x",
            f"{found['with_index']:.1f} x",
            f"{found['on_disk']:.1f} x",
        ]
        for model in facts["models"]
        for precision, found in model["encoder_compression"].items()
    ]
    names = [
        "model",
        "values",
        "sparsity x bits (the paper's count)",
        "with 1 bit an element",
        "bitmask file",
    ]
    return table(names, rows)


def agreement_table(facts: Facts) -> list[str]:
    """Return how far every engine's outputs are from torch's."""
    rows = [
        [
            model["label"],
            engine,
            f"{found['max_difference']:.2g} of {found['largest_output']:.3g}",
            f"{found['same_answer']:.2%}",
            f"{found['inputs']} ({model['checked_with']})",
        ]
        for model in facts["models"]
        for engine, found in model["agreement"].items()
    ]
    return table(["model", "engine", "largest difference", "same answer", "inputs"], rows)


def speed_table(facts: Facts) -> list[str]:
    """Return a row for every comparison."""
    rows = [
        [
            row["model"],
            row["compared_with"],
            row["engine"],
            str(row["batch"]),
            str(row["length"]),
            f"{row['sparse']['median_ms']:.1f}",
            f"{row['dense']['median_ms']:.1f}",
            f"{row['sparse']['inputs_per_second']:.1f}",
            f"{row['speedup']:.2f} x",
        ]
        for row in facts["times"]
    ]
    names = [
        "model", "compared with", "engine", "batch", "length", "ms", "ms dense", "inputs/s", "dense / sparse",
    ]  # fmt: skip
    return table(names, rows)


def table(names: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]
