"""The pages of deploy/docs that are tables of the code: rendered here, compared by a test.

`python -m tests.house.pages` (make docs) writes them anew. Pages written by hand do not belong here.
"""

from __future__ import annotations

from pathlib import Path

from ledger.schema import page as schema_page
from reconciler import errors, settings

DOCS = Path(__file__).parents[2] / "deploy" / "docs"

_SETTINGS = """\
# Settings

Every setting is an environment variable of the daemon, read once at its start. Names and parsing are
those of the AWS VPC CNI where it has the same setting; ours begin with `VPCLEDGER_`. Set but empty
counts as unset. What was given, what it became and why is a row of the view `v_settings`:

```sh
vpcledger show settings
```

A value marked *strict* stops the start when it cannot be used, as upstream's entry point does; any
other one is replaced by the default, and its row says so (`source` = `invalid`).
"""

_REASONS = """\
# Reason codes

Every refusal and every ended lease carries one of these codes. The same code and sentence stand in
the CNI error the runtime logs, in the view `v_requests`, in STATUS and in `vpcledger explain`.

| code | what it says |
|---|---|
"""


def _default(field_name: str, value: object) -> str:
    """The default as one would set it; times are set in seconds and held in milliseconds."""
    if value is None or value in ("", ()) or (field_name == "pod_mtu" and value == 0):
        return "unset"
    if field_name.endswith("_ms") and isinstance(value, int):
        return f"`{value // 1000}`"
    return f"`{value}`"


def settings_page() -> str:
    """settings.md."""
    said = settings.paragraphs()
    parts = [_SETTINGS]
    for knob in settings.knobs():
        name = knob.metadata["env"]
        strict = ", strict" if knob.metadata["strict"] else ""
        parts.append(f"## {name}\n\nDefault: {_default(knob.name, knob.default)}{strict}\n")
        parts.append(f"{said[name]}\n")
    return "\n".join(parts)


def reasons_page() -> str:
    """reasons.md."""
    return _REASONS + "".join(f"| `{code}` | {says} |\n" for code, says in errors.REASONS.items())


def pages() -> dict[str, str]:
    """File name and text of every rendered page."""
    return {
        "settings.md": settings_page(),
        "reasons.md": reasons_page(),
        "schema.md": schema_page.render(),
    }


if __name__ == "__main__":
    DOCS.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (DOCS / name).write_text(text)
