"""Where each method comes from: a literal table, read without jax.

What a method *is* stands in its factory in `polopt.algorithms` and in the cards of its pieces. This
table knows only what code cannot: the paper, the method that it is a change of, and a line of
purpose. A test holds its keys and its sides against the compositions.
"""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """The bibliography of a method."""

    title: str
    paper: str  # an arXiv id, or other words that end with a year
    parent: str | None  # the method that it is a change of
    sides: str  # what it changes of REINFORCE: "R" reward, "T" trajectory, "RT" both, "" nothing
    purpose: str  # at most 52 characters, so that a row of `polopt methods` fits 100 columns
    family: str = ""

    @property
    def on_arxiv(self) -> bool:
        """Whether `paper` is an arXiv id."""
        return self.paper[:4].isdigit()

    @property
    def year(self) -> int:
        """The year of the paper.

        >>> METHODS["grpo"].year, METHODS["reinforce"].year
        (2024, 1992)
        """
        return 2000 + int(self.paper[:2]) if self.on_arxiv else int(self.paper.rstrip(")")[-4:])

    @property
    def link(self) -> str | None:
        """The address of the paper, where it is on arXiv."""
        return f"https://arxiv.org/abs/{self.paper}" if self.on_arxiv else None


# fmt: off
_BY_FAMILY: dict[str, dict[str, Method]] = {
    "REINFORCE": {
        "reinforce": Method("REINFORCE", "Williams 1992",
            None, "", "the policy gradient itself: raw return"),
        "rloo": Method("REINFORCE Leave-One-Out", "2402.14740",
            "reinforce", "R", "baseline: mean of the prompt's other completions"),
        "remax": Method("ReMax", "2310.10505",
            "reinforce", "R", "baseline: reward of the greedy completion"),
        "reinforce_pp": Method("REINFORCE++", "2501.03262",
            "ppo", "RT", "no critic, no groups: credit whitened over the batch"),
        "reinforce_pp_baseline": Method("REINFORCE++-baseline", "2501.03262",
            "reinforce_pp", "RT", "group mean first, then whitened over the batch"),
        "opo": Method("On-Policy RL with Optimal baseline", "2505.23585",
            "rloo", "R", "the baseline of least variance: weighted by length"),
        "otb": Method("Optimal Token Baseline", "2602.07078",
            "opo", "RT", "a baseline for every position, by score norms"),
        "gpg": Method("Group Policy Gradient", "2504.02546",
            "grpo", "R", "plain policy gradient, dead groups made up for"),
        "lite_ppo": Method("Lite PPO", "2508.08221",
            "grpo", "RT", "group mean, but the spread of the whole batch"),
    },
    "PPO and critics": {
        "a2c": Method("Advantage Actor-Critic", "1602.01783",
            "reinforce", "RT", "a learned critic as baseline, one update a rollout"),
        "ppo": Method("Proximal Policy Optimization", "1707.06347",
            "a2c", "RT", "critic and clipped ratios: several updates a rollout"),
        "vc_ppo": Method("Value-Calibrated PPO", "2503.01491",
            "ppo", "RT", "critic and policy each with its own lambda"),
        "vapo": Method("Value-based Augmented PPO", "2504.05118",
            "vc_ppo", "RT", "lambda by length, clip-higher, successes' likelihood"),
        "decoupled_ppo": Method("Decoupled PPO", "2110.00641",
            "ppo", "RT", "clips to a recent policy, corrects for the sampler"),
    },
    "GRPO": {
        "grpo": Method("Group Relative Policy Optimization", "2402.03300",
            "ppo", "RT", "credit relative to the group's mean and spread"),
        "dr_grpo": Method("GRPO Done Right", "2503.20783",
            "grpo", "RT", "GRPO without its length and difficulty biases"),
        "dapo": Method("Decoupled clip and Dynamic sAmpling PO", "2503.14476",
            "grpo", "RT", "clip-higher, dynamic sampling, length shaping"),
        "bnpo": Method("Beta Normalization Policy Optimization", "2506.02864",
            "grpo", "RT", "normalises by a Beta fitted to the pass rates"),
        "gdpo": Method("Group reward-Decoupled Normalization PO", "2601.05242",
            "grpo", "RT", "each reward component normalised on its own"),
        "passk_grpo": Method("Pass@k Training", "2508.10751",
            "grpo", "RT", "credit for the best of k, not for each alone"),
        "nsr": Method("Negative Sample Reinforcement", "2506.01347",
            "reinforce", "RT", "learn from wrong completions only"),
        "psr": Method("Positive Sample Reinforcement", "2506.01347",
            "reinforce", "RT", "learn from right completions only"),
        "w_reinforce": Method("Weighted-REINFORCE", "2506.01347",
            "nsr", "RT", "right completions count a tenth of wrong ones"),
    },
    "Ratios and trust regions": {
        "gspo": Method("Group Sequence Policy Optimization", "2507.18071",
            "grpo", "RT", "one ratio per sequence, as the reward is"),
        "gspo_token": Method("GSPO-token", "2507.18071",
            "gspo", "RT", "the sequence's ratio, the token's own gradient"),
        "gmpo": Method("Geometric-Mean Policy Optimization", "2507.20673",
            "grpo", "RT", "geometric mean of clipped token ratios"),
        "luspo": Method("Length-Unbiased Sequence PO", "2602.05261",
            "gspo", "RT", "GSPO that does not favour short sequences"),
        "cispo": Method("Clipped IS-weight Policy Optimization", "2506.13585",
            "grpo", "RT", "clips the weight: no token loses its gradient"),
        "sapo": Method("Soft Adaptive Policy Optimization", "2511.20347",
            "grpo", "RT", "a smooth gate in place of the clip"),
        "vespo": Method("Variational Sequence-level Soft PO", "2602.10693",
            "grpo", "RT", "a smooth weight of the whole sequence's ratio"),
        "aspo": Method("Asymmetric Importance Sampling PO", "2510.06062",
            "grpo", "RT", "turns the ratio over where the credit is positive"),
        "bapo": Method("Balanced PO with Adaptive Clipping", "2510.18927",
            "grpo", "RT", "moves the bounds until positive credit weighs enough"),
        "dcpo": Method("Dynamic Clipping Policy Optimization", "2509.02333",
            "grpo", "RT", "bounds by token probability, statistics by prompt"),
        "dppo_tv": Method("Divergence PPO, total variation", "2602.04879",
            "dr_grpo", "RT", "trust region by total variation, not by ratio"),
        "dppo_kl": Method("Divergence PPO, KL", "2602.04879",
            "dppo_tv", "RT", "trust region by a token's KL, not by ratio"),
        "two_sided": Method("Two-sided GRPO (INTELLECT-2)", "2505.07291",
            "grpo", "RT", "a cap on the ratio of negative credit as well"),
        "unbiased_kl": Method("Unbiased KL estimate (DeepSeek-V3.2)", "2512.02556",
            "grpo", "RT", "KL penalty weighed by the ratio: the right gradient"),
    },
    "Entropy": {
        "clip_cov": Method("Clip-Cov", "2505.22617",
            "grpo", "RT", "drops some tokens that drive entropy down"),
        "kl_cov": Method("KL-Cov", "2505.22617",
            "grpo", "RT", "holds back the tokens that drive entropy down"),
        "entropy_top_quantile": Method("Forking tokens (80/20)", "2506.01939",
            "dapo", "RT", "trains only where the model is uncertain"),
        "adaptive_entropy": Method("Adaptive entropy control (Skywork-OR1)", "2505.22312",
            "grpo", "RT", "an entropy bonus held at a target by a controller"),
    },
    "Off-policy and mismatch": {
        "topr": Method("Tapered Off-Policy REINFORCE", "2503.14286",
            "reinforce", "RT", "only negative samples are tapered by their ratio"),
        "asymre": Method("Asymmetric REINFORCE", "2506.20520",
            "reinforce", "R", "a baseline set a little low: successes lead"),
        "rec": Method("Group-relative REINFORCE is off-policy", "2509.24203",
            "reinforce", "RT", "mask, weight and regulariser chosen apart"),
        "tis": Method("Truncated Importance Sampling", "blog (Yao et al. 2025)",
            "grpo", "RT", "weighs by trainer over sampler, truncated"),
        "mis": Method("Masked Importance Sampling", "blog (Liu et al. 2025)",
            "tis", "RT", "drops sequences that the sampler saw otherwise"),
        "icepop": Method("IcePop", "2512.16144",
            "tis", "RT", "drops tokens that the sampler saw otherwise"),
        "opsm": Method("Off-Policy Sequence Masking (DeepSeek-V3.2)", "2512.02556",
            "grpo", "RT", "drops negative rows that have become unlikely"),
    },
    "Regression": {
        "dro": Method("Direct Reward Optimisation", "2405.19107",
            "reinforce", "T", "regresses the reward on value and log-ratio"),
        "rebel": Method("REgression to RElative REward Based RL", "2404.16767",
            "dpo", "RT", "regresses reward differences of pairs"),
        "gvpo": Method("Group Variance Policy Optimization", "2504.19599",
            "rebel", "RT", "regresses centred rewards of a whole group"),
        "kimi_pmd": Method("Policy mirror descent (Kimi k1.5)", "2501.12599",
            "rebel", "RT", "mirror descent, the partition by the group's mean"),
        "a_star_po": Method("A*-PO", "2505.20686",
            "rebel", "RT", "regresses to the optimal value: one sample a prompt"),
        "flowrl": Method("FlowRL", "2509.15207",
            "kimi_pmd", "RT", "matches the reward's distribution, learned partition"),
    },
    "Trackers and process rewards": {
        "spo_single_stream": Method("Single-stream Policy Optimization", "2509.13232",
            "grpo", "RT", "a remembered pass rate per prompt, no groups"),
        "prime": Method("Process Reinforcement through IMplicit rEwards", "2502.01456",
            "rloo", "RT", "token rewards of a model trained on outcomes"),
        "ttrl": Method("Test-Time Reinforcement Learning", "2504.16084",
            "grpo", "RT", "no labels: the majority's answer is right"),
        "empo": Method("Entropy Minimized Policy Optimization", "2504.05812",
            "ttrl", "RT", "no labels: reward is the share of the same answer"),
    },
    "Trees and agents": {
        "treerpo": Method("Tree Relative Policy Optimization", "2506.05183",
            "grpo", "RT", "siblings of a tree compared, values backed up"),
        "treepo": Method("Tree-based Policy Optimization", "2508.17445",
            "grpo", "RT", "compared with all subtrees that a row lies in"),
        "arpo": Method("Agentic Reinforced Policy Optimization", "2507.19849",
            "grpo", "RT", "branches where a tool's answer left doubt"),
        "gigpo": Method("Group-in-Group Policy Optimization", "2505.10978",
            "grpo", "RT", "compares episodes, and steps from the same state"),
        "mt_grpo": Method("Multi-Turn GRPO", "2505.11821",
            "grpo", "RT", "the reward of a turn beside the outcome's"),
        "turn_ppo": Method("Turn-PPO", "2512.17008",
            "ppo", "RT", "a whole turn is one action: ratio, value, credit"),
        "bi_level_gae": Method("Bi-level GAE (RAGEN, VAGEN)", "2504.20073",
            "ppo", "RT", "advantages over turns, then within each turn"),
        "starpo": Method("StarPO-S (RAGEN)", "2504.20073",
            "grpo", "RT", "trains on the prompts with the widest spread"),
    },
    "Distillation": {
        "gkd": Method("Generalized Knowledge Distillation", "2306.13649",
            None, "T", "divergence to a teacher on the student's own text"),
        "minillm": Method("MiniLLM", "2306.08543",
            "reinforce", "RT", "reverse KL to a teacher by policy gradient"),
        "opd": Method("On-Policy Distillation", "blog (Thinking Machines 2025)",
            "minillm", "RT", "every token is paid the teacher's log-ratio"),
        "iw_opd": Method("Importance-Weighted OPD", "2606.22600",
            "opd", "R", "early tokens of a completion weigh more"),
        "sdpo": Method("Self-Distillation Policy Optimization", "2601.20802",
            "opd", "T", "the teacher is the model itself, told the feedback"),
        "gold": Method("General Online Logit Distillation", "blog (Hugging Face 2025)",
            "gkd", "T", "a teacher with another tokenizer"),
        "grpo_opd": Method("GRPO with on-policy distillation", "2606.16733",
            "grpo", "RT", "the outcome's credit and the teacher's, added"),
    },
    "Preferences": {
        "dpo": Method("Direct Preference Optimization", "2305.18290",
            None, "RT", "logistic regression on pairs, no reward model"),
        "ipo": Method("Identity Preference Optimization", "2310.12036",
            "dpo", "RT", "a squared loss: the margin stays finite"),
        "online_dpo": Method("Online DPO", "2402.04792",
            "dpo", "RT", "pairs sampled from the policy and judged"),
    },
}
# fmt: on

FAMILIES: tuple[str, ...] = tuple(_BY_FAMILY)
METHODS: dict[str, Method] = {
    key: method._replace(family=family)
    for family, methods in _BY_FAMILY.items()
    for key, method in methods.items()
}

# What each method was held against: "oracle" (a slow NumPy loop written from the paper), a peer
# library with its version, "identities" with other methods.
EVIDENCE: dict[str, tuple[str, ...]] = {
    "reinforce": ("oracle", "verl 0.9.1", "identities"),
    "rloo": ("oracle", "verl 0.9.1", "trl 1.16.0", "tunix 0.1.7", "identities"),
    "remax": ("oracle", "verl 0.9.1", "identities"),
    "reinforce_pp": ("oracle", "verl 0.9.1", "identities"),
    "reinforce_pp_baseline": ("oracle", "verl 0.9.1", "identities"),
    "opo": ("oracle", "verl 0.9.1", "identities"),
    "otb": ("oracle", "verl 0.9.1", "identities"),
    "gpg": ("oracle", "identities"),
    "lite_ppo": ("oracle", "trl 1.16.0", "identities"),
    "a2c": ("oracle", "identities"),
    "ppo": ("oracle", "verl 0.9.1", "tunix 0.1.7", "identities"),
    "vc_ppo": ("oracle", "identities"),
    "vapo": ("oracle", "identities"),
    "decoupled_ppo": ("oracle", "identities"),
    "grpo": ("oracle", "verl 0.9.1", "trl 1.16.0", "tunix 0.1.7", "identities"),
    "dr_grpo": ("oracle", "verl 0.9.1", "trl 1.16.0", "tunix 0.1.7", "identities"),
    "dapo": ("oracle", "verl 0.9.1", "trl 1.16.0", "tunix 0.1.7", "identities"),
    "bnpo": ("oracle", "identities"),
    "gdpo": ("oracle", "verl 0.9.1", "identities"),
    "passk_grpo": ("oracle", "verl 0.9.1", "identities"),
    "nsr": ("oracle", "identities"),
    "psr": ("oracle", "identities"),
    "w_reinforce": ("oracle", "identities"),
    "gspo": ("oracle", "verl 0.9.1", "trl 1.16.0", "identities"),
    "gspo_token": ("oracle", "tunix 0.1.7", "identities"),
    "gmpo": ("oracle", "verl 0.9.1", "trl 1.16.0", "identities"),
    "luspo": ("oracle", "trl 1.16.0", "identities"),
    "cispo": ("oracle", "verl 0.9.1", "trl 1.16.0", "identities"),
    "sapo": ("oracle", "verl 0.9.1", "trl 1.16.0", "identities"),
    "vespo": ("oracle", "trl 1.16.0", "identities"),
    "aspo": ("oracle", "identities"),
    "bapo": ("oracle", "identities"),
    "dcpo": ("oracle", "identities"),
    "dppo_tv": ("oracle", "verl 0.9.1", "identities"),
    "dppo_kl": ("oracle", "verl 0.9.1", "identities"),
    "two_sided": ("oracle", "trl 1.16.0", "identities"),
    "unbiased_kl": ("oracle", "trl 1.16.0", "identities"),
    "clip_cov": ("oracle", "verl 0.9.1", "identities"),
    "kl_cov": ("oracle", "verl 0.9.1", "identities"),
    "entropy_top_quantile": ("oracle", "trl 1.16.0", "identities"),
    "adaptive_entropy": ("oracle", "trl 1.16.0", "identities"),
    "topr": ("oracle", "identities"),
    "asymre": ("oracle", "identities"),
    "rec": ("oracle", "identities"),
    "tis": ("oracle", "verl 0.9.1", "trl 1.16.0", "tunix 0.1.7", "identities"),
    "mis": ("oracle", "trl 1.16.0", "identities"),
    "icepop": ("oracle", "verl 0.9.1", "trl 1.16.0", "identities"),
    "opsm": ("oracle", "trl 1.16.0", "identities"),
    "dro": ("oracle", "verl 0.9.1", "identities"),
    "rebel": ("oracle", "identities"),
    "gvpo": ("oracle", "identities"),
    "kimi_pmd": ("oracle", "identities"),
    "a_star_po": ("oracle", "trl 1.16.0", "identities"),
    "flowrl": ("oracle", "identities"),
    "spo_single_stream": ("oracle", "identities"),
    "prime": ("oracle", "identities"),
    "ttrl": ("oracle", "identities"),
    "empo": ("oracle", "identities"),
    "treerpo": ("oracle", "identities"),
    "treepo": ("oracle", "identities"),
    "arpo": ("oracle", "identities"),
    "gigpo": ("oracle", "identities"),
    "mt_grpo": ("oracle", "identities"),
    "turn_ppo": ("oracle", "identities"),
    "bi_level_gae": ("oracle", "identities"),
    "starpo": ("oracle", "identities"),
    "gkd": ("oracle", "trl 1.16.0", "identities"),
    "minillm": ("oracle", "identities"),
    "opd": ("oracle", "identities"),
    "iw_opd": ("oracle", "trl 1.16.0", "identities"),
    "sdpo": ("oracle", "identities"),
    "gold": ("oracle", "identities"),
    "grpo_opd": ("oracle", "identities"),
    "dpo": ("oracle", "trl 1.16.0", "tunix 0.1.7", "identities"),
    "ipo": ("oracle", "trl 1.16.0", "identities"),
    "online_dpo": ("oracle", "trl 1.16.0", "identities"),
}
