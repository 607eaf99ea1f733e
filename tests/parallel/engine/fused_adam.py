"""A stand-in for NVIDIA apex's FusedAdam, with its rules and without its kernels."""

import torch


class FusedAdam(torch.optim.Optimizer):
    """Adam in AdamW mode that counts in its groups: from the first step on, once per call.

    Rules of apex/optimizers/fused_adam.py: `group["step"]` is a number, made in the first step, and one count for all
    parameters of the group; the state of a parameter is `exp_avg` and `exp_avg_sq`. Newer versions skip a group without
    parameters, older ones count it (`counts_empty_groups`).
    """

    counts_empty_groups = False

    def __init__(
        self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True, weight_decay=0.0
    ):
        assert adam_w_mode and bias_correction
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not group["params"] and not self.counts_empty_groups:
                continue
            group["step"] = group["step"] + 1 if "step" in group else 1
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter.data).float()
                    state["exp_avg_sq"] = torch.zeros_like(parameter.data).float()
                state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                mean = state["exp_avg"] / (1 - beta1 ** group["step"])
                spread = (state["exp_avg_sq"] / (1 - beta2 ** group["step"])).sqrt() + group["eps"]
                parameter.sub_(group["lr"] * (mean / spread + group["weight_decay"] * parameter))
