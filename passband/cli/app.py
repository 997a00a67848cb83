"""All commands: arguments and help here, work in the library, tables in `tables.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from passband.cli.group import Commands
from passband.cli.light import LightCommand
from passband.cli.output import say, write_json
from passband.errors import ConfigError, ResultsError

app = typer.Typer(
    name="passband", cls=Commands, no_args_is_help=True, add_completion=False,
    rich_markup_mode=None,  # plain help costs no import of Rich's Markdown
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Published machine-learning systems that really work. Start with `passband list`.",
)

# ---- options that several commands share --------------------------------------------------------

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Runs = Annotated[Path, typer.Option(help="Folder of results.", file_okay=False)]
Systems = Annotated[list[str], typer.Argument(help="Names from `passband list`.")]
Preset = Annotated[str, typer.Option(help="paper, small or smoke (see `passband info`).")]
Size = Annotated[str, typer.Option(help="Size of the task's data: full, small or smoke.")]
BudgetText = Annotated[
    str | None,
    typer.Option("--budget", help="Limits such as 2m, 500steps, 10kexamples or 2m,500steps."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set one configuration field; repeatable."),
]
DataPath = Annotated[Path | None, typer.Option("--data", help="Your own data for the task.")]
ModelPath = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="Your own pretrained model, if the task takes it."),
]
Engine = Annotated[str, typer.Option(help="local (processes on this machine) or ray (a cluster).")]
Address = Annotated[str | None, typer.Option(help="Address of the Ray cluster, such as auto.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes at a time.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of data, initialisation and training.")]

RUNS = Path("runs")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from passband import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command("list", cls=LightCommand)
def list_systems(
    words: Annotated[list[str] | None, typer.Argument(help="Words; * matches ids.")] = None,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    verb: Annotated[str | None, typer.Option(help="Only systems that can do this.")] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Baselines instead.")] = False,
    runs: Annotated[str, typer.Option(help="Folder of results.")] = "runs",
    as_json: AsJson = False,
) -> None:
    """What systems there are, what each does, and the state of its claims.

    \b
    passband list
    passband list --family pde
    passband list --verb solve --baselines
    passband list separation music
    """
    from dataclasses import asdict

    from passband.catalog import select
    from passband.cli.verdicts import state, verdicts

    kind = "baseline" if baselines else "system"
    found = select(" ".join(words or ()), family=family, verb=verb, kind=kind)
    known = verdicts(Path(runs))
    if as_json:
        write_json([{**asdict(card), "verdicts": known.get(card.id, {})} for card in found])
        return
    if not found:
        typer.echo("none found; `passband list` without words shows all")
        return
    from passband.cli.listing import show_cards

    show_cards(found, {c.id: state(len(c.claims), known.get(c.id, {})) for c in found})


@app.command()
def info(
    system: Annotated[str, typer.Argument(help="A name from `passband list`.")],
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """The card of a system, its presets, configuration, tasks and claims.

    \b
    passband info gp-hm
    passband info gp-hm --json
    """
    from passband import api
    from passband.cli.verdicts import verdicts

    facts = api.info(system)
    known = verdicts(runs).get(system, {})
    facts["claims"] = [{**c, "verdict": known.get(c["id"], "")} for c in facts["claims"]]
    if as_json:
        write_json(facts)
        return
    from passband.cli.tables import show_info

    show_info(facts)


@app.command()
def train(
    system: Annotated[str, typer.Argument(help="A name from `passband list`.")],
    task: Annotated[str | None, typer.Option(help="The job; default: the card's first.")] = None,
    data: DataPath = None,
    model: ModelPath = None,
    preset: Preset = "small",
    settings: Settings = None,
    budget: BudgetText = None,
    seed: Seed = 0,
    size: Size = "small",
    resume: Resume = False,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Train a system on a task and save it.

    \b
    passband train gp-hm --task poisson1d-mix
    passband train gp-hm --task poisson1d-mix --data problem.npz --set kernel=gm --budget 2m
    passband train gp-hm --task poisson1d-mix --resume
    """
    from passband import api
    from passband.cli.progress import bar

    with bar(f"train {system}") as monitor:
        result = api.train(
            system, task, data=data, model=model, preset=preset, budget=budget, seed=seed,
            size=size, resume=resume, runs=runs, monitor=monitor, **parse_settings(settings),
        )
    if as_json:
        write_json(result)
        return
    from passband.cli.tables import show_result

    show_result(result, runs)


@app.command("apply")
def apply_system(
    target: Annotated[str, typer.Argument(help="A folder written by `train`, or a system's name.")],
    inputs: Annotated[list[Path], typer.Argument(help="Your files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("out"),
    preset: Preset = "small",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Apply a trained system to your own files.

    \b
    passband apply runs/cells/NAME problem.npz -o out/
    passband apply gp-hm problem.py           a system that needs no training first
    """
    from passband import api
    from passband.cli.progress import bar

    with bar(f"apply {target}") as monitor:
        written = api.apply(
            target, inputs, out, preset=preset, monitor=monitor, **parse_settings(settings)
        )
    if as_json:
        write_json({"written": written})
        return
    for path in written:
        say(str(path))
    if (factor := monitor.figures.get("real_time_factor")) is not None:
        say(f"real-time factor {factor:.2g}: seconds of work for each second of sound")


@app.command()
def compare(
    systems: Systems,
    task: Annotated[str, typer.Option(help="The job that all of them do.")],
    data: DataPath = None,
    model: ModelPath = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Add the baselines on the systems' cards.")
    ] = False,
    reference: Annotated[
        str, typer.Option(help="What the others are tested against: first, best or a name.")
    ] = "first",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE of all, or SYSTEM.FIELD=VALUE of one."),
    ] = None,
    budget: BudgetText = None,
    preset: Preset = "small",
    size: Size = "small",
    engine: Engine = "local",
    address: Address = None,
    processes: Processes = None,
    html: Annotated[bool, typer.Option("--html", help="Write the report as well.")] = False,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Several systems on one task at equal budget, with paired statistics.

    \b
    passband compare gp-hm chebyshev pinn --task poisson1d-mix --seeds 3
    passband compare gp-hm --baselines --task poisson1d-random --budget 30s
    passband compare gp-hm pinn --task poisson1d-mix --data problem.npz
    passband compare sorsa lora --task lm-code --set batch_size=16 --set lora.lr=1e-2
    passband compare gp-hm pinn --task poisson1d-random --engine ray --address auto
    """
    from passband import api
    from passband.cli.progress import bar

    with bar(f"compare on {task}") as monitor:
        found = api.compare(
            systems, task, data=data, model=model, seeds=seeds, budget=budget, preset=preset,
            size=size, baselines=baselines, reference=reference, engine=engine, address=address,
            processes=processes, runs=runs, progress=monitor.progress,
            overrides=by_system(parse_settings(settings), systems),
        )
    written = None
    if html:
        from passband.bench.report import write_report

        written = write_report(runs)
    if as_json:
        write_json(found.to_json() | ({"report": written} if written else {}))
        return
    from passband.cli.tables import show_comparison

    show_comparison(found)
    if written:
        say(f"report: {written}")


@app.command()
def reproduce(
    systems: Annotated[list[str] | None, typer.Argument(help="Names from `passband list`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All systems.")] = False,
    claims: Annotated[
        list[str] | None, typer.Option("--claims", "--claim", help="Only these, such as C1,C2.")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Fewer cases and seeds: seconds.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Seeds from 1000 up; verdicts are not recorded.")
    ] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Take finished runs of the same code.")
    ] = False,
    engine: Engine = "local",
    address: Address = None,
    processes: Processes = None,
    open_report: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Prove the claims of a paper: reported, obtained, verdict.

    \b
    passband reproduce gp-hm
    passband reproduce gp-hm --claims C1,C3 --smoke
    passband reproduce --all --smoke
    """
    from passband import api, catalog
    from passband.bench.report import write_report
    from passband.cli.progress import bar

    if bool(systems) == everything:
        raise ConfigError(
            "both names and --all" if everything else "no system is named",
            expected="names of systems, or --all", mend="for example: passband reproduce gp-hm",
        )
    names = [card.id for card in catalog.select()] if everything else list(systems or ())
    wanted = [claim.strip() for text in claims or () for claim in text.split(",")] or None
    with bar("reproduce") as monitor:
        proved = api.reproduce(
            names, claims=wanted, smoke=smoke, calibrate=calibrate, reuse=reuse, engine=engine,
            address=address, processes=processes, runs=runs, progress=monitor.progress,
        )
    report = write_report(runs)
    if as_json:
        write_json({"claims": proved, "report": report})
    else:
        from passband.cli.tables import show_proved

        show_proved(proved)
        say(f"report: {report}")
    if open_report:
        import webbrowser

        webbrowser.open(report.resolve().as_uri())


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="Folder of results.", file_okay=False)] = RUNS,
    markdown: Annotated[bool, typer.Option("--markdown", help="Claims as Markdown.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """All results as one HTML file that needs no network.

    \b
    passband report
    passband report runs/ -o report.html
    passband report --markdown
    """
    from passband.bench.report import claims_markdown, write_report

    if not runs.is_dir():
        raise ResultsError(
            f"there is no folder {runs}", expected="a folder of results",
            mend="`passband reproduce` or `passband compare` makes one",
        )
    if not markdown:
        path = write_report(runs, out)
        write_json({"report": path}) if as_json else say(f"report: {path}")
        return
    text = claims_markdown(runs)
    if out is not None:
        out.write_text(text)
    if as_json:
        write_json({"markdown": text, "report": out})
    else:
        say(text if out is None else f"report: {out}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the environment; each fault comes with the command that mends it.

    \b
    passband doctor
    """
    from dataclasses import asdict

    from passband.cli.doctor import examine

    findings = [asdict(finding) for finding in examine()]
    healthy = all(f["state"] != "broken" for f in findings)
    if as_json:
        write_json({"healthy": healthy, "findings": findings})
    else:
        from passband.cli.tables import show_findings

        show_findings(findings)
        say("all that is essential is here" if healthy else "something essential is broken")
    if not healthy:
        raise typer.Exit(1)


@app.command()
def new(
    family: Annotated[str, typer.Argument(help="One of the families of `passband list`.")],
    name: Annotated[str, typer.Argument(help="The new system's name, such as my-method.")],
    as_json: AsJson = False,
) -> None:
    """Scaffold of a system that works at once, tests included.

    Inside a checkout of passband it is put into its family; elsewhere it becomes a small package.

    \b
    passband new vision my-method
    """
    from passband.cli.new import plan

    made = plan(family, name)
    written = made.write()
    if as_json:
        write_json({"written": written, "next": made.next_steps})
        return
    for path in written:
        say(str(path))
    say("\nnext:")
    for step in made.next_steps:
        say(f"  {step}")


def by_system(settings: dict[str, Any], systems: list[str]) -> dict[str, dict[str, Any]]:
    """Settings of each system: those named for it go before those for all.

    >>> by_system({"lr": 0.1, "lora.lr": 0.2}, ["lora", "hft"])
    {'lora': {'lr': 0.2}, 'hft': {'lr': 0.1}}
    """
    common = {name: value for name, value in settings.items() if "." not in name}
    found = {system: dict(common) for system in systems}
    for name, value in settings.items():
        system, dot, field = name.partition(".")
        if dot and system not in found:
            raise ConfigError(
                f"--set {name}", expected=f"one of {', '.join(systems)} before the dot",
                mend=f"--set {systems[0]}.{field}=...",
            )
        if dot:
            found[system][field] = value
    return found


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """FIELD=VALUE pairs; a value is JSON, or else the text itself. pydantic gives it its type.

    >>> parse_settings(["n_bands=32", "kernel=gm", "name=a=b"])
    {'n_bands': 32, 'kernel': 'gm', 'name': 'a=b'}
    """
    import json

    found: dict[str, Any] = {}
    for text in settings or ():
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ConfigError(f"--set {text}", expected="FIELD=VALUE", mend="e.g. --set rank=8")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
