"""The figures of FAULTS.md: what a fault test measured, in one form. `pytest -rP` shows them all."""


def figure(name: str, value: object, bound: object = "") -> None:
    print(f"figure: {name}: {value}" + (f" (bound: {bound})" if bound != "" else ""))


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
