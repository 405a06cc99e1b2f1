"""What the user wants: sources, agents, gateway and bounds, read from a file or given in code."""

from typing import TYPE_CHECKING

from cord_trio.config.agents import AgentConfig as AgentConfig
from cord_trio.config.agents import BudgetConfig as BudgetConfig
from cord_trio.config.agents import MailboxConfig as MailboxConfig
from cord_trio.config.agents import SupervisorConfig as SupervisorConfig
from cord_trio.config.layering import Layered as Layered
from cord_trio.config.layering import ToolSettings as ToolSettings
from cord_trio.config.mesh import MeshConfig as MeshConfig
from cord_trio.config.rules import Quota as Quota
from cord_trio.config.rules import Rule as Rule
from cord_trio.config.settings import Bounds as Bounds
from cord_trio.config.settings import Config as Config
from cord_trio.config.settings import GatewayConfig as GatewayConfig
from cord_trio.config.settings import ProfileConfig as ProfileConfig
from cord_trio.config.settings import is_loopback as is_loopback
from cord_trio.config.settings import parse_address as parse_address
from cord_trio.config.values import Common as Common
from cord_trio.config.values import Foreign as Foreign
from cord_trio.config.values import Http as Http
from cord_trio.config.values import InProcess as InProcess
from cord_trio.config.values import Source as Source
from cord_trio.config.values import Stdio as Stdio
from cord_trio.config.values import ToolFilter as ToolFilter
from cord_trio.config.values import WebSocket as WebSocket
from cord_trio.config.values import public_url as public_url
from cord_trio.config.values import several as several

if TYPE_CHECKING:
    from cord_trio.config.load import load_config as load_config
    from cord_trio.config.load import parse_config as parse_config


def __getattr__(name: str) -> object:
    """The readers of files are imported by those who read one."""
    if name in ("load_config", "parse_config"):
        from cord_trio.config import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
