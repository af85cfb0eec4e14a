"""DiTFlow's own keys, and the names that they have in the published program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from animatediff.config import option
from animatediff.pipelines.ditflow.optimization import KINDS, VARIABLES

BACKBONES = ("auto", "cogvideox_2b", "cogvideox_5b", "wan")


@dataclass
class DiTFlowSettings:
    """The method's own settings; the defaults are the published run's on CogVideoX-5b."""

    backbone: str = option("auto", "the kind of transformer these settings are for", choices=BACKBONES, once=True)
    loss: str = option("flow", "what guides; none: nothing, injection alone", choices=(*KINDS, "none"))
    variable: str = option("latents", "what is optimised", choices=VARIABLES)
    guidance_blocks: list[int] = option([20], "blocks whose motion is compared", least=0)
    injection_blocks: list[int] = option([0], "blocks that get the reference's keys and values; [] is none", least=0)
    guidance_steps: int = option(10, "first denoising steps that are guided and injected", least=0, most=1000)
    optimization_steps: int = option(5, "updates in a guided step", least=0, most=1000)
    learning_rate: list[float] = option([0.002, 0.001], "of the updates: at the start and at the end", least=0)
    temperature: float = option(2.0, "of the attention maps whose flow is taken", least=1e-3, most=1e3)
    moving_only: bool = option(True, "flow: compare only what moves in the reference")
    hard_reference: bool = option(True, "flow: the reference's displacements by the largest entry")
    moft_share: float = option(0.04, "moft: share of the channels", least=0, most=1)
    dynamic_cfg: bool = option(True, "CogVideoX-5b's guidance scale, which hops between 1 and 1 + guidance_scale")
    flow_shift: float = option(3.0, "Wan: of the noise schedule; 3 for 480p, 5 for 720p", least=0.01, most=100)
    positions_path: str = option("", "saved positions, used instead of the reference's motion")
    save_positions: bool = option(False, "variable positions: write them beside the output")
    published_gradient: bool = option(False, "CogVideoX-5b's positions: the published program's wrong gradient")
    gradient_checkpointing: bool = option(True, "updates in less memory, a third slower", pixels=False)
    batched_cfg: bool = option(True, "both passes of the guidance in one batch; false: less memory", pixels=False)
    vae_tiling: bool = option(False, "encode and decode in tiles, for memory", once=True)


# Names of the published command line and its YAML -> ours; below, those whose values differ, answered with ours.
ALIASES: Mapping[str, str] = {
    "v": "ref_video_path",
    "p": "prompt",
    "n": "num_frames",
    "video_length": "num_frames",
    "output_path": "output_dir",
    "source_prompt": "ref_prompt",
    "loss_type": "ditflow.loss",
    "inject_embeds": "ditflow.positions_path",
    "lr": "ditflow.learning_rate",
    "optimization_steps": "ditflow.optimization_steps",
    "guidance_blocks": "ditflow.guidance_blocks",
    "injection_blocks": "ditflow.injection_blocks",
    "motion_temp": "ditflow.temperature",
    "threshloss": "ditflow.moving_only",
    "argmax_motion_flow": "ditflow.hard_reference",
    "prop_motion": "ditflow.moft_share",
    "enable_gradient_checkpointing": "ditflow.gradient_checkpointing",
}
RENAMED: Mapping[str, str] = {
    "model": "pretrained_model_path, a folder, or --config configs/inference/ditflow/cogvideox_5b.yaml (or _2b)",
    "opt_mode": "ditflow.variable=latents (published: latent) or positions (published: emb)",
    "guidance_timestep_range": "ditflow.guidance_steps=10, the number of steps from its first to its second",
    "guidance_blocks_2b": "ditflow.guidance_blocks",
    "guidance_blocks_5b": "ditflow.guidance_blocks",
    "no_guidance": "ditflow.loss=none",
    "no_injection": "ditflow.injection_blocks=[]",
    "save_format": "gif=true or frames=true; an mp4 is always written",
}
