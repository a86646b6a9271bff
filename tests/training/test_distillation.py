"""Whole runs with everything distillation knows, against plain torch, resumed, and with stored logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from transformers import AutoConfig, AutoModelForMaskedLM

from sparse_pretrain.checkpoint.release import release
from sparse_pretrain.checkpoint.store import read_checkpoint
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.loader import Slice, TrainingLoader
from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.distillation.matching import projection_widths
from sparse_pretrain.distillation.temperature import temperature_at
from sparse_pretrain.models.loading import build_model
from sparse_pretrain.models.projections import PROJECTION_PREFIX, build_projections, is_projection
from sparse_pretrain.training.callback import StepReport
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.teacher_inputs import student_section, teacher_section
from sparse_pretrain.training.teacher_logits import write_teacher_logits
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.tiny import VOCABULARY, tiny_prepared, tiny_recipe

TOLERANCE = 1e-5
STEPS = 4
PARTS = ("logits", "hidden", "attention", "embeddings")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data; a BERT teacher that is deeper and wider, a DistilBERT teacher as wide as the student."""
    folder = tmp_path_factory.mktemp("distillation")
    tiny_prepared(folder / "data")
    torch.manual_seed(7)
    bert = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 40}
    distilbert = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 40}
    for name, widths in (("bert", bert), ("distilbert", distilbert)):
        config = AutoConfig.for_model(name, vocab_size=len(VOCABULARY), max_position_embeddings=64, **widths)
        model = AutoModelForMaskedLM.from_config(config)
        # Far from uniform answers, so that every part has something to say.
        for weight in model.parameters():
            weight.data.mul_(3)
        model.save_pretrained(folder / name)
    return folder


def everything(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two teachers, every part, a moving temperature."""
    return {
        "teacher": [str(folder / "bert"), str(folder / "distilbert")],
        "teacher_weights": [3, 1],
        "kd_weight": 0.6,
        "temperature": 3.0,
        "temperature_end": 1.5,
        "hidden": {"weight": 0.5},
        "attention": {"weight": 20.0, "layers": {2: 3}},
        "embeddings": {"weight": 0.3},
        **changes,
    }


def recipe_of(folder: Path, distillation: dict[str, Any], **changes: Any) -> TrainRecipe:
    shared: dict[str, Any] = {"steps": STEPS, "learning_rate": {"kind": "constant", "warmup": 0.0}}
    return tiny_recipe(folder / "data", folder / "run", distillation=distillation, **{**shared, **changes})


def values_of(recipe: TrainRecipe, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(recipe.model_dump_json())
    return values | changes


def train_all(world: World, jobs: list[tuple[dict[str, Any], str | None]]) -> list[dict[str, Any]]:
    """Train every recipe, from a checkpoint where one is given; return reports, weights and moments."""
    from sparse_pretrain.training.build import build_trainer
    from sparse_pretrain.training.restore import restore

    results = []
    for values, checkpoint in jobs:
        recipe = TrainRecipe.model_validate(values)
        trainer, saver = build_trainer(recipe, open_inputs(recipe), world, "fp32", [])
        if checkpoint is not None:
            restore(trainer, Path(checkpoint), saver.teacher_identity)
        batches = trainer.loader.batches_at(0)
        reports = []
        while trainer.step < recipe.steps:
            reports.append(trainer.train_step()[0])
            if trainer.step % recipe.checkpoint.every == 0:
                saver.begin(trainer)
                saver.commit(trainer)
        engine = trainer.engine
        results.append(
            {
                "reports": reports,
                "logits": sum(len(batch.positions) for batch in batches),
                "counts": [sum(column) for column in zip(*(batch.counts for batch in batches), strict=True)],
                "weights": {name: engine.full_master(name).numpy() for name in engine.shapes},
                "moments": {
                    f"{name}/{kind}": moment.numpy().copy()
                    for name, fragment in engine.fragments()
                    for kind, moment in fragment.moments.items()
                },
            }
        )
    return results


def hidden_of(student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return ((student - teacher) ** 2).mean(dim=-1)[real].mean()


def attention_of(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(dim=1, keepdim=True), teacher.mean(dim=1, keepdim=True)
    rows = [
        ((student[row, :, :length, :length] - teacher[row, :, :length, :length]) ** 2).mean(dim=(0, 2))
        for row, length in enumerate(mask.sum(dim=1).tolist())
    ]
    return torch.cat(rows).mean()


def reference(recipe: TrainRecipe) -> dict[str, Any]:
    """The same in plain torch: one process, whole global batches, Hugging Face's own outputs."""
    section = recipe.distillation
    assert section is not None
    inputs = open_inputs(recipe)
    size = recipe.batch.global_size
    loader = TrainingLoader(
        inputs.train, Slice(size, size, 0, 1), recipe.masking, inputs.table, recipe.seed, True
    )
    torch.manual_seed(recipe.seed)
    model = build_model(inputs.config, student_section(recipe), next_sentence=True)
    bridges = build_projections(
        projection_widths(inputs.matches, inputs.config, inputs.teacher_configs), recipe.seed
    )
    teachers = [
        build_model(config, teacher_section(source, recipe), next_sentence=False).eval()
        for source, config in zip(section.teachers, inputs.teacher_configs, strict=True)
    ]
    names = dict(model.named_parameters())
    names |= {PROJECTION_PREFIX + name: weight for name, weight in bridges.named_parameters()}
    matrices = [weight for weight in names.values() if weight.ndim >= 2]
    vectors = [weight for weight in names.values() if weight.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3
    )
    rows: list[dict[str, float]] = []
    for step in range(recipe.steps):
        (batch,) = loader.next_step()
        temperature = temperature_at(step, recipe.steps, section)
        arguments = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "output_hidden_states": True,
            "output_attentions": True,
        }
        real = batch.attention_mask.bool()
        mine = model(**arguments, token_type_ids=batch.token_type_ids)
        logits = mine.prediction_logits[real]
        mlm = F.cross_entropy(logits, batch.labels, ignore_index=IGNORED)
        mlm = mlm + F.cross_entropy(mine.seq_relationship_logits, batch.next_sentence_labels)
        predicted = batch.labels != IGNORED
        where = predicted if section.positions == "masked" else torch.ones_like(predicted)
        parts: dict[str, torch.Tensor] = dict.fromkeys(PARTS, torch.zeros(()))
        same = 0.0
        for number, (share, teacher) in enumerate(zip(section.shares, teachers, strict=True)):
            types = {"token_type_ids": batch.token_type_ids} if number == 0 else {}
            with torch.no_grad():
                its = teacher(**arguments, **types)
            soft = torch.softmax(its.logits[real][where] / temperature, -1)
            found = {
                "logits": temperature**2
                * F.kl_div(torch.log_softmax(logits[where] / temperature, -1), soft, reduction="batchmean")
            }
            # BERT has 4 layers for the student's 2, DistilBERT 3: i T / S, rounded half up.
            layers = {1: 2, 2: 4} if number == 0 else {1: 2, 2: 3}

            def bridge(state: torch.Tensor, name: str, number: int = number) -> torch.Tensor:
                return bridges[f"teacher-0-{name}"](state) if number == 0 else state

            found["hidden"] = torch.stack(
                [
                    hidden_of(bridge(mine.hidden_states[i], f"hidden-{i}-{j}"), its.hidden_states[j], real)
                    for i, j in layers.items()
                ]
            ).mean()
            found["attention"] = attention_of(mine.attentions[1], its.attentions[2], batch.attention_mask)
            found["embeddings"] = hidden_of(
                bridge(mine.hidden_states[0], "embeddings"), its.hidden_states[0], real
            )
            parts = {name: parts[name] + share * found[name] for name in PARTS}
            first, second = logits.argmax(-1), its.logits[real].argmax(-1)
            same += share * float((first == second)[predicted].float().mean())
        weights = {"logits": 1.0, "hidden": 0.5, "attention": 20.0, "embeddings": 0.3}
        kd = sum(weights[name] * parts[name] for name in PARTS)
        loss = section.mlm_weight * mlm + section.kd_weight * kd
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(names.values(), 1.0)
        optimizer.step()
        rows.append(
            {
                "loss": float(loss.detach()),
                "kd": float(kd.detach()),
                "temperature": temperature,
                "same": same,
                **{name: float(part.detach()) for name, part in parts.items()},
            }
        )
    return {"rows": rows, "weights": {name: weight.detach().numpy() for name, weight in names.items()}}


def row_of(report: StepReport) -> dict[str, float]:
    assert report.kd_loss is not None
    assert report.temperature is not None
    assert report.teacher_agreement is not None
    return {
        "loss": report.loss,
        "kd": report.kd_loss,
        "temperature": report.temperature,
        "same": report.teacher_agreement,
        **report.kd_parts,
    }


def test_two_ranks_match_plain_torch(folder: Path) -> None:
    """ZeRO 1, 2 and 3, replicated and sharded teachers, KD at all and at masked positions: every number."""
    all_of = recipe_of(folder, everything(folder))
    masked = recipe_of(folder, everything(folder, positions="masked", placement="sharded"))
    expected = {"all": reference(all_of), "masked": reference(masked)}
    assert all(abs(row[name]) > 1e-3 for row in expected["all"]["rows"] for name in PARTS)
    runs = [("all", all_of, 2), ("all", all_of, 3), ("masked", masked, 1), ("masked", masked, 3)]
    jobs = [(values_of(recipe, engine={"stage": stage}), None) for _, recipe, stage in runs]
    for results in run_distributed(train_all, 2, jobs):
        for (name, _, _), found in zip(runs, results, strict=True):
            for report, row in zip(found["reports"], expected[name]["rows"], strict=True):
                assert row_of(report) == pytest.approx(row, abs=TOLERANCE)
            assert found["weights"].keys() == expected[name]["weights"].keys()
            assert sum(map(is_projection, found["weights"])) == 3
            for parameter, weight in expected[name]["weights"].items():
                assert abs(found["weights"][parameter] - weight).max() < TOLERANCE, parameter


@pytest.mark.slow
def test_projections_are_resumed_on_any_ranks_and_stage_and_never_released(
    folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(folder, everything(folder), checkpoint={"every": 2, "keep": {"last": 9}})

    def job(name: str, stage: int) -> dict[str, Any]:
        return values_of(recipe, engine={"stage": stage}, output=str(tmp_path / name))

    stages = (2, 3)
    whole = run_distributed(train_all, 2, [(job(f"whole-{stage}", stage), None) for stage in stages])
    saved = {stage: tmp_path / f"whole-{stage}" / "checkpoints" / "step-0000002" for stage in stages}
    again = [(job(f"again-{stage}", stage), str(saved[stage])) for stage in stages]
    for rank, results in enumerate(run_distributed(train_all, 2, again)):
        for resumed, uninterrupted in zip(results, whole[rank], strict=True):
            for kind in ("weights", "moments"):
                assert resumed[kind].keys() == uninterrupted[kind].keys()
                for name, value in uninterrupted[kind].items():
                    assert (resumed[kind][name] == value).all(), name
    ((other,),) = run_distributed(train_all, 1, [(job("other", 1), str(saved[3]))])
    for name, value in whole[0][1]["weights"].items():
        assert abs(other["weights"][name] - value).max() < TOLERANCE, name

    contents = read_checkpoint(saved[3])
    assert not any(map(is_projection, contents.weights))
    release(contents, tmp_path / "release", Console(quiet=True))


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_a_distilbert_student_follows_a_bert_of_another_size(folder: Path, attention: str) -> None:
    """No next-sentence head, no token types, other names for the same sizes."""
    model = {
        "config": {
            "model_type": "distilbert",
            "max_position_embeddings": 64,
            **{"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
        },
        "dropout": 0.0,
        "attention": attention,
    }
    section = everything(folder, teacher=str(folder / "bert"), teacher_weights=None)
    recipe = recipe_of(folder, section, model=model, steps=2)
    ((result,),) = run_distributed(train_all, 1, [(values_of(recipe), None)])
    assert all(report.kd_parts[name] > 0 for report in result["reports"] for name in PARTS)
    assert all(report.nsp_loss is None for report in result["reports"])


def test_masked_positions_need_few_logits_and_agreement_is_measured_on_logged_steps(folder: Path) -> None:
    section = {"teacher": str(folder / "bert"), "positions": "masked"}
    recipe = recipe_of(folder, section, steps=5, logging={"every": 3, "histograms_every": 0})
    ((result,),) = run_distributed(train_all, 1, [(values_of(recipe), None)])
    measured = [report.teacher_agreement is not None for report in result["reports"]]
    assert measured == [True, False, True, False, True]
    predicted, real, _ = result["counts"]
    assert result["logits"] == predicted < real / 3
    assert all(set(report.kd_parts) == {"logits"} for report in result["reports"])
    assert all(report.kd_loss == report.kd_parts["logits"] for report in result["reports"])


@pytest.mark.parametrize("positions", ["all", "masked"])
def test_stored_logits_of_the_whole_vocabulary_equal_the_teacher(
    folder: Path, tmp_path: Path, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one and on two ranks; fp16 logits are what differs. Written in shards of one step."""
    monkeypatch.setattr("sparse_pretrain.training.teacher_logits.SHARD_BYTES", 1)
    section = {"teacher": str(folder / "bert"), "positions": positions, "temperature": 1.5}
    online = recipe_of(folder, section)
    write_teacher_logits(online, tmp_path / "logits", len(VOCABULARY), Console(quiet=True))
    assert len(list((tmp_path / "logits").glob("logits-*.safetensors"))) == STEPS
    stored = recipe_of(folder, {**section, "precomputed": str(tmp_path / "logits")})
    ((expected,),) = run_distributed(train_all, 1, [(values_of(online), None)])
    for results in run_distributed(train_all, 2, [(values_of(stored), None)]):
        for found, report in zip(results[0]["reports"], expected["reports"], strict=True):
            assert found.loss == pytest.approx(report.loss, abs=1e-4)
            assert found.kd_loss == pytest.approx(report.kd_loss, abs=1e-4)
            assert found.teacher_agreement == pytest.approx(report.teacher_agreement, abs=1e-6)
        for name, weight in expected["weights"].items():
            # Adam's first steps have the sign of the gradient: a value near zero may go either way.
            assert abs(results[0]["weights"][name] - weight).mean() < 1e-4, name
