"""Every setting of a run, in one validated tree.

YAML goes in, `section.key=value` overrides go on top, a resolved JSON comes out, and that JSON can go in again. A key
that does not exist is refused with the nearest one that does. The digest of the tree is the identity of a run.
"""

from maft.config.base import FREE, PerIteration, Section, identity, of_iteration
from maft.config.engines import (
    HOSTED,
    SAMPLERS,
    TRAINERS,
    ClusterConfig,
    EngineConfig,
    OpenAiConfig,
    TrackingConfig,
    VllmConfig,
)
from maft.config.method import (
    TASK_SETTINGS,
    Ballots,
    CurateConfig,
    DebateConfig,
    EvalConfig,
    GuardConfig,
    RoleSampling,
    SamplingConfig,
    SandboxConfig,
    TaskConfig,
    VoteConfig,
)
from maft.config.run import RunConfig, check_loop
from maft.config.society import AgentConfig, AgentSampling, SocietyConfig
from maft.config.training import LoraConfig, RoleTraining, TrainConfig, Training
from maft.config.tree import changed, differences, digest, load, over, parse, resolved, short_digest
from maft.config.words import known_keys, parts

__all__ = [
    "FREE",
    "HOSTED",
    "SAMPLERS",
    "TASK_SETTINGS",
    "TRAINERS",
    "AgentConfig",
    "AgentSampling",
    "Ballots",
    "ClusterConfig",
    "CurateConfig",
    "DebateConfig",
    "EngineConfig",
    "EvalConfig",
    "GuardConfig",
    "LoraConfig",
    "OpenAiConfig",
    "PerIteration",
    "RoleSampling",
    "RoleTraining",
    "RunConfig",
    "SamplingConfig",
    "SandboxConfig",
    "Section",
    "SocietyConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainConfig",
    "Training",
    "VllmConfig",
    "VoteConfig",
    "changed",
    "check_loop",
    "differences",
    "digest",
    "identity",
    "known_keys",
    "load",
    "of_iteration",
    "over",
    "parse",
    "parts",
    "resolved",
    "short_digest",
]
