"""``python -m torch_gfshadow`` is ``gfshadow``."""

from torch_gfshadow.cli import main

if __name__ == "__main__":
    main(prog_name="gfshadow")
