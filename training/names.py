"""The names of all metrics: in the journal, in MLflow and in a comparison, the same for every kind and stage of a run."""

from __future__ import annotations

import re

METRICS = {
    "loss": "mean over what counts in the step, of all ranks; its unit is the objective's",
    "loss_{sensor}": "the same, in a run on several sensors, of the sensor that the step was of",
    "grad_norm": "norm of the whole gradient before it is clipped",
    "lr": "learning rate of the step, before the layers' own scales",
    "samples_per_s": "samples of all ranks in a second, waiting for data included",
    "tokens_per_s": "cubes that the encoders of all ranks read in a second",
    "flops_per_s": "operations of all ranks in a second, as `training.flops` counts them; of a fine-tune its encoder's",
    "peak_share": "those, as a share of what the device does in its best matrix product",
    "data_wait_share": "share of the step's time that rank 0 waited for its batch",
    "memory_gb": "most that rank 0's device held so far; on a CPU what its process holds now",
    "save_s": "seconds that the checkpoint before this step made the training wait",
    "mask_ratio": "share of an image's cubes that was hidden",
    "mask_lambda": "strength of the guidance by saliency, as the curriculum has it at this step",
    "mask_saliency_shown": "mean saliency of the cubes shown",
    "mask_saliency_hidden": "mean saliency of the cubes hidden",
    "mask_saliency_predicted": "mean saliency of the cubes reconstructed, where that is not all of the hidden",
    "mask_top_quartile_shown": "share of the cubes shown that are among the most salient quarter",
    "skipped_steps": "steps of this life whose update was left out because it was not finite",
    "loss_scale": "what the loss is multiplied by in fp16, lowered by each step that overflows",
    "loss_spike": "1 where the loss jumped above what the steps before it let expect",
    "replaced_share": "share of the step's samples that others stood in for, with `data.damaged: replace`",
    "replaced_samples": "samples of the run that others stood in for so far",
    "slowest_rank_ratio": "time of the slowest rank's forward passes over the ranks' median",
    "probe_{score}": "score of the pretraining's probe on its labelled set",
    "{split}_{score}": "score of a downstream task on the whole of a split",
    "system/{what}": "of rank 0's machine, under MLflow's own names",
}
"""Name, or what names are made like, and what it says."""
_MADE = {
    "{sensor}": r"[a-z0-9_.-]+",
    "{score}": r"[a-z0-9_]+",
    "{split}": r"[A-Za-z0-9-]+",
    "{what}": r"[a-z0-9_]+",
}
SCORES = ("accuracy", "f1", "iou", "map")
"""Ends of the names of the scores that are shown beside the loss, whatever split they are of."""

COMPARED = ("loss", "val_accuracy", "val_macro_f1", "val_miou", "samples_per_s", "peak_share")
"""What MLflow's list of runs shows of each at first."""
COMPARED_BY = ("seed", "masking.strategy", "masking.ratio", "model.size", "mode", "init", "fraction")
"""And the parameters beside them."""


def meaning(name: str) -> str | None:
    """Return what a metric says, or None for a name that no run gives."""
    # the more is said outright, the better it fits: `loss_spike` is no sensor's loss
    for pattern in sorted(METRICS, key=lambda p: ("{" in p, -len(re.sub(r"{\w+}", "", p)))):
        expression = re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}")
        for field, made in _MADE.items():
            expression = expression.replace(field, made)
        if re.fullmatch(expression, name):
            return METRICS[pattern]
    return None
