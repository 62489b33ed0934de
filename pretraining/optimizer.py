"""Muon for the hidden matrices and AdamW for everything else.

Muon (Jordan et al., 2024): momentum whose singular values are pushed to one by a Newton-Schulz
iteration. Matrices of one shape are treated together, so that a step is a few batched products.
"""

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices, steps=5):
    """(B, m, n) -> matrices with nearly the same singular vectors and singular values near one."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return (x.mT if flip else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """`parts` tells how many matrices a parameter stacks along its rows (3 for a qkv)."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(
            parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1}
        )

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.shape[0] // group["parts"], p.shape[1]), []).append(p)
            for shape, parameters in by_shape.items():
                self._step_shape(parameters, shape, group)

    def _step_shape(self, parameters, shape, group):
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in parameters]
        buffers = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
        stacked = torch.stack(nesterov).view(-1, *shape)
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        updates = orthogonalise(stacked).view(len(parameters), *parameters[0].shape).unbind(0)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates), alpha=-group["lr"] * scale)


def build_optimizers(model, heads, config):
    """[Muon, AdamW], each group with its `peak` rate for the schedule."""
    stacked, plain, decayed, free = [], [], [], []
    for name, p in model.named_parameters():
        hidden = p.dim() == 2 and any(part in name for part in (".layers.", ".blocks.", ".merger."))
        if hidden:
            (stacked if ".qkv." in name else plain).append(p)
        else:
            (decayed if p.dim() >= 2 else free).append(p)
    muon = Muon(
        [{"params": plain, "parts": 1}, {"params": stacked, "parts": 3}],
        lr=config["muon_rate"],
        weight_decay=config["muon_decay"],
    )
    adam = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.01},
            {"params": free},
            {"params": list(heads.parameters())},
        ],
        lr=config["adam_rate"],
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=next(model.parameters()).is_cuda,
    )
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]
