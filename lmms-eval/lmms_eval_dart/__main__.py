"""lmms-eval's own command (`python -m lmms_eval`, all its flags), also where torchvision does not fit torch."""

from __future__ import annotations

from lmms_eval_dart.torchvision_ops import import_torchvision


def main() -> None:
    """lmms-eval reads the command line."""
    import_torchvision()
    from lmms_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
