"""Methods and analyses: list them, print a card."""

from argparse import Namespace

from selfdistill.cli.common import Commands, add_command
from selfdistill.errors import UserError


def add(commands: Commands) -> None:
    sub = add_command(
        commands,
        "methods",
        show_methods,
        "what methods exist, with paper and card",
        "List the methods, or print one method's card and its hyper-parameters with their sources.",
        "Example: selfdistill methods byot",
    )
    sub.add_argument("name", nargs="?", help="a method, to print its card")
    sub.add_argument("--json", action="store_true", help="machine-readable")
    sub = add_command(
        commands,
        "analyses",
        show_analyses,
        "what analyses exist, with their numbers and cards",
        "List the analyses, or print one analysis' card, its numbers and its settings.",
        "Example: selfdistill analyses accuracy",
    )
    sub.add_argument("name", nargs="?", help="an analysis, to print its card")


def show_methods(options: Namespace) -> None:
    import json

    from selfdistill import methods

    known = {name: methods.about(name) for name in methods.names()}
    if options.name is not None and options.name not in known:
        raise UserError(f"no method {options.name!r}; there are {', '.join(known)}")
    if options.json:
        chosen = known if options.name is None else {options.name: known[options.name]}
        print(json.dumps([{"method": name, **about} for name, about in chosen.items()], indent=1))
    elif options.name is not None:
        print(methods.card(options.name).rstrip())
        hyper = known[options.name]["hyper"]
        print("\n## Hyper-parameters\n" + ("" if hyper else "\nNone."))
        for key, spec in hyper.items():
            allowed = spec.get("choices") or spec.get("allowed") or [True, False]
            searched = f" Searched: {in_words(spec['search'])}." if spec.get("search") else ""
            head = f"- `{key}` = {spec['default']} (allowed {allowed}): {spec['meaning']}."
            print(f"{head} Source: {spec['source']}.{searched}")
    else:
        width = max(map(len, known))
        for name, about in known.items():
            paper = f"arXiv {about['paper']}" if about["paper"] else "-"
            print(f"{name:{width}}  {paper:16}  {about['group']:19}  x{about['cost']:<4}  {about['name']}")
        print(
            "\nx: operations of training relative to plain, a teacher's training included (on the default network).\n"
            "`selfdistill methods NAME` prints a method's card."
        )


def in_words(space: dict) -> str:
    """Where a hyper-parameter is searched."""
    if "value" in space:
        return f"always {space['value']}"
    what = ""
    if "times" in space:
        powers = (f" x {name}" + (f"^{power}" if power != 1 else "") for name, power in space["times"].items())
        what = f", of it{''.join(powers)}"
    elif "share" in space:
        what = f", of the first step's loss, as the share of {space['share']}"
    return f"{space['low']} to {space['high']}, {space['scale']}{what}"


def show_analyses(options: Namespace) -> None:
    from selfdistill import analyses

    known = analyses.names()
    if options.name is None:
        width = max(map(len, known))
        for name in known:
            about = analyses.about(name)
            print(f"{name:{width}}  {'probe' if analyses.is_probe(name) else '':5}  {about['title']}")
        print("\nprobe: of the networks themselves, where a study lists it under `probes`.")
        return
    if options.name not in known:
        raise UserError(f"no analysis {options.name!r}; there are {', '.join(known)}")
    print(analyses.card(options.name).rstrip())
    about = analyses.about(options.name)
    print("\n## Numbers\n")
    for key, number in about["numbers"].items():
        unit, better = (f" ({number['unit']})" if number["unit"] else ""), number["better"]
        print(f"- `{key}`: {number['title']}{unit}{f', {better} is better' if better else ''}")
    print("\n## Settings\n" + ("" if about["settings"] else "\nNone."))
    for key, spec in about["settings"].items():
        print(f"- `{key}` = {spec['default']} (allowed {spec.get('choices') or spec.get('allowed') or [True, False]})")
