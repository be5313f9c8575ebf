"""What PEFT, which shares no code with this package, makes of deltas."""

import copy
from collections import Counter

import numpy as np
import peft
import torch
from tiny import LABEL_IDS, columns, label_logits, projection, projection_names
from torch.nn import functional as F


def peft_model(model, adapter):
    """A copy of the model with the deltas in place as PEFT's LoRA modules."""
    names = [projection_names(model)[target] for target in adapter.arch.targets[0]]
    rank = next(f.rank for factors in adapter.factors if factors for f in factors.values())
    rank *= max(Counter(names).values())
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=names,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    tuned = peft.get_peft_model(copy.deepcopy(model), config).eval()
    for layer, factors in enumerate(adapter.factors):
        set_factors(tuned, layer, factors or {})
    return tuned


def set_factors(tuned, layer, factors):
    """Give a layer one candidate's factors; targets of one module get ranks of their own in it."""
    model = tuned.base_model.model
    taken = Counter()
    for target, f in factors.items():
        module = projection(model, layer, target)
        a, b = module.lora_A["default"].weight.data, module.lora_B["default"].weight.data
        if not taken[module]:
            a.zero_()
            b.zero_()
        rows = slice(taken[module], taken[module] + f.rank)
        a[rows] = f.A[0]
        b[columns(model, target), rows] = f.B[0].mT
        taken[module] += f.rank


def peft_losses(arch, layer, candidates, adapter, prompts, label_ids=LABEL_IDS):
    """Mean cross-entropy over the label words of each candidate, one prompt at a time."""
    tuned = peft_model(arch.model, adapter)
    labels = torch.tensor([prompt.label for prompt in prompts])
    losses = []
    for p in range(len(next(iter(candidates.values())))):
        set_factors(tuned, layer, {name: f[p : p + 1] for name, f in candidates.items()})
        logits = label_logits(tuned, prompts, label_ids)
        losses.append(F.cross_entropy(logits.double(), labels).item())
    return np.array(losses)
