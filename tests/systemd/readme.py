"""The commands of README's section "As a service", so that what people type is what is tested."""

import re

from .box import PROJECT


def service_commands() -> list[str]:
    """Each command of the section's block, in order, without the remarks behind them."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## As a service\n")[2].partition("\n## ")[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    return [re.sub(r" {2,}#.*", "", line).strip() for line in lines if line.strip()]
