"""The workflows on GitHub: what they may do, what they run, and that what they run exists."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from vireid_lite import cli

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
JOBS = [(name, job, content) for name, flow in WORKFLOWS.items() for job, content in flow["jobs"].items()]
STEPS = [(name, job, step) for name, job, content in JOBS for step in content["steps"]]
# Who may write what. Everybody else reads at most.
WRITES = {
    ("book", "publish"): {"pages": "write", "id-token": "write"},
    ("weekly", "report"): {"issues": "write"},
    ("release", "release"): {"contents": "write"},
}


def triggers(flow: dict) -> dict:
    """Return what starts a workflow (YAML reads the key `on` as True)."""
    return flow[True] if isinstance(flow[True], dict) else dict.fromkeys(flow[True])


def test_the_workflows_there_should_be():
    assert set(WORKFLOWS) == {"book", "weekly", "release"}
    assert set(triggers(WORKFLOWS["book"])) == {"push", "pull_request"}
    assert triggers(WORKFLOWS["book"])["push"] == {"branches": ["main"]}
    assert set(triggers(WORKFLOWS["weekly"])) == {"schedule", "workflow_dispatch"}
    minute, hour, day, month, weekday = triggers(WORKFLOWS["weekly"])["schedule"][0]["cron"].split()
    assert (day, month) == ("*", "*")
    assert all(part.isdigit() for part in (minute, hour, weekday))
    assert triggers(WORKFLOWS["release"]) == {"push": {"tags": ["v*"]}}


def test_actions_are_pinned_by_commit_and_alike():
    pins = {}
    for path in FILES:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "uses:" in line:
                found = re.fullmatch(r"\s*(?:- )?uses: (actions/[\w-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line)
                assert found, f"{path.name}: {line.strip()}"
                pins.setdefault(found[1], set()).add((found[2], found[3]))
    assert all(len(versions) == 1 for versions in pins.values()), pins
    assert len({commit for versions in pins.values() for commit, _ in versions}) == len(pins)


@pytest.mark.parametrize(("name", "job", "content"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_job_has_least_rights_and_ends(name, job, content):
    assert WORKFLOWS[name]["permissions"] == {}
    assert content["permissions"] == WRITES.get((name, job), {"contents": "read"})
    assert 0 < content["timeout-minutes"] <= 180
    assert content["runs-on"] == "ubuntu-24.04"
    assert not {"container", "services", "secrets"} & set(content)
    if (name, job) in WRITES:
        # Who may write runs nothing of the repository, which a change could bring.
        used = [step.get("uses", "").split("@")[0] for step in content["steps"]]
        assert set(used) <= {"", "actions/deploy-pages", "actions/download-artifact"}
        assert not any(re.search(r"\b(make|pip|python|vireid)|\.ci/", step.get("run", "")) for step in content["steps"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_secret_and_no_word_of_a_stranger_reaches_a_shell(path):
    text, flow = path.read_text(encoding="utf-8"), WORKFLOWS[path.stem]
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(triggers(flow))
    assert "secrets." not in text
    assert "github.event." not in text
    assert "head_ref" not in text
    if "pull_request" in triggers(flow):
        assert "github.token" not in text
    assert flow["concurrency"]["group"].startswith(path.stem)
    for name, _, step in STEPS:
        if name == path.stem:
            assert "${{" not in step.get("run", ""), step
            assert step.get("continue-on-error") is None
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_only_main_is_published_and_a_pull_request_leaves_a_preview():
    jobs = WORKFLOWS["book"]["jobs"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["if"] == "github.event_name == 'push' && github.ref == 'refs/heads/main'"
    kept = next(step for step in jobs["build"]["steps"] if "upload-artifact" in step.get("uses", ""))
    assert "if" not in kept
    assert kept["with"]["path"] == "_build/html"


@pytest.mark.parametrize("name", ["book", "release"])
def test_nothing_leaves_before_the_build_is_checked(name):
    steps = WORKFLOWS[name]["jobs"]["build"]["steps"]
    runs = [step.get("run", "") for step in steps]
    built, checked = runs.index(".ci/run"), runs.index(".venv/bin/vireid-lite publish-check")
    leaves = [place for place, step in enumerate(steps) if "upload" in step.get("uses", "")]
    assert built < checked < min(leaves)
    assert not any("if" in step for step in steps[: checked + 1])


def test_what_is_run_exists():
    targets = re.findall(r"^([\w./$()-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = {target.replace("$(READY)", ".venv/.ready") for target in targets}
    group = typer.main.get_command(cli.app)
    seen = set()
    for _, _, step in STEPS:
        run = step.get("run", "")
        subprocess.run(["bash", "-n", "-c", run], check=True)
        for target in re.findall(r"^\s*make (\S+)", run, re.MULTILINE):
            assert target in targets, target
        for command, options in re.findall(
            r"\bvireid-lite ([\w-]+)((?: --[\w-]+)*)", re.sub(r"vireid-lite-\S+", "", run)
        ):
            known = {option for each in group.commands[command].params for option in each.opts}
            assert set(options.split()) <= known, run
            seen.add(command)
        for script in re.findall(r"(?<![\w/])(?:/book/)?(\.ci/\w[\w.]*)", run):
            assert (ROOT / script).is_file(), script
            seen.add(script)
    assert seen == {"book", "publish-check", ".ci/run", ".ci/colab.py", ".ci/weights.py"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_each_week_chapters_are_entered_in_colabs_image_and_with_the_oldest_torch():
    jobs = WORKFLOWS["weekly"]["jobs"]
    image, oldest = (jobs[job]["steps"][-1]["run"] for job in ("colab", "oldest"))
    assert jobs["colab"]["env"]["IMAGE"].endswith(":latest")  # what readers get
    assert re.search(r"docker run .*\$PWD:/book:ro.*/book/\.ci/colab\.py\"$", image)
    assert oldest == "python .ci/colab.py --clean"


def test_actions_are_kept_up_to_date_and_nothing_else():
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))
    assert updates["version"] == 2
    (update,) = updates["updates"]  # constraints.txt is one tested set: no part of it moves by itself
    assert (update["package-ecosystem"], update["directory"]) == ("github-actions", "/")
    assert update["schedule"] == {"interval": "weekly"}


def test_a_failed_week_opens_one_issue(tmp_path):
    job = WORKFLOWS["weekly"]["jobs"]["report"]
    assert job["if"] == "failure()"
    assert set(job["needs"]) == set(WORKFLOWS["weekly"]["jobs"]) - {"report"}
    script = job["steps"][0]["run"]
    calls = tmp_path / "calls"
    gh = tmp_path / "gh"
    gh.write_text(f'#!/bin/sh\nif [ "$2" = list ]; then echo "$OPEN"; else echo "$@" >> {calls}; fi\n')
    gh.chmod(0o755)
    for already in ("", "17"):
        values = {
            "TITLE": "It fails",
            "LINKS": "success",
            "COLAB": "failure",
            "OLDEST": "success",
            "MUTATIONS": "success",
            "WEIGHTS": "success",
            "RUN": "https://x",
            "OPEN": already,
        }
        environment = {**values, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=environment, check=True)
    text = "Links: success. Colab: failure. Oldest torch: success. Mutations: success. Weights: success. "
    text += "What failed is in the log: https://x"
    assert calls.read_text().splitlines() == [
        f"issue create --title It fails --body {text}",
        f"issue comment 17 --body {text}",
    ]
