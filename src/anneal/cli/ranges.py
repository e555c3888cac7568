"""Numbers that make no sense, by an argument's name.

Torch, torchvision and Lightning take some of them without a word, and trip over others in the
middle of a training.
"""

import math
from typing import Any

from anneal.errors import UserError

LIBRARIES = ("torch", "torchvision", "lightning", "anneal")  # whose arguments are meant
NAMES = {
    (-1, False): "num_sanity_val_steps",
    (0, False): "backbone_initial_lr backbone_initial_ratio_lr base_lr cooldown copy_epochs "
    "end_factor eta_min factor gamma gradient_clip_val log_every_n_steps lr_decay max_lr "
    "milestones min_epochs min_lr min_steps patience power refresh_rate start_factor swa_lrs "
    "threshold unfreeze_backbone_at_epoch update_starting_at_epoch update_starting_at_step",
    (0, True): "div_factor final_div_factor val_check_interval",
    (1, False): "T_0 T_max T_mult accumulate_grad_batches annealing_epochs "
    "check_val_every_n_epoch flush_logs_every_n_steps history_size init_val max_iter max_trials "
    "num_training_steps step_size step_size_down step_size_up steps_per_trial total_iters "
    "total_steps update_every_n_steps window",
}
LEAST = {name: least for least, names in NAMES.items() for name in names.split()}
SHARES = {"base_momentum", "decay", "max_momentum", "p", "pct_start"}  # from 0 to 1


def check_range(name: str, value: Any, place: str = "") -> Any:
    """Return a library's argument; raise UserError if it is or lists a number out of range."""
    least, above = LEAST.get(name, (0 if name in SHARES else -math.inf, False))
    most, end = (1, " and at most 1") if name in SHARES else (math.inf, "")
    for n in value if isinstance(value, list) else [value]:
        if isinstance(n, int | float) and not (least <= n <= most and (n > least or not above)):
            words = f"{'more than' if above else 'at least'} {least}{end}"
            raise UserError(f"{place}must be {words if n == n else 'a number'}, got {n}")
    return value
