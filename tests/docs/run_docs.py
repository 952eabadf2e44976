#!/usr/bin/env python3
"""Runs the shell commands of README.md and docs/*.md as they stand there.

Usage: run_docs.py ROOT PROGRAM [--slow] [--only FILE]
Blocks that are fenced as ```sh run whole, a page's blocks in order in one scratch folder, in which the repository's
folders are found under their names and `pmkvq` is on the PATH. Blocks fenced as ```sh slow (minutes to hours) and `./run`
commands run with --slow only; those fenced as ```sh fails must end with an error. A ```text block right behind a block
that ran shows lines of its output: each must occur there, in which `...` stands for any text and a run of blanks for any
other. Every pmkvq command line, in a block or in `backticks`, must name a command and options that the program has."""
import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time

FENCE = re.compile(r"^```(\S*)[ \t]*(.*?)\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`(pmkvq [^`]+)`")
OPTION = re.compile(r"(?<![\w-])(--?[A-Za-z][\w-]*)")


def documents(root):
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def command_lines(text):
    """The pmkvq command lines of a block, continuation lines joined and comments dropped."""
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # Not a line of shell.
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if words and words[0] == "time":
            words.pop(0)
        while "pmkvq" in words:
            words = words[words.index("pmkvq"):]
            end = next((i for i, word in enumerate(words) if word in ("|", "&&", ";", ">", "||")), len(words))
            yield words[1:end]
            words = words[end:]


class Helps:
    """What `pmkvq COMMAND --help` lists; empty for what is no command."""

    def __init__(self, program):
        self.program = program
        self.known = {}

    def options(self, command):
        if command not in self.known:
            result = subprocess.run([self.program, *command, "--help"], capture_output=True, text=True)
            self.known[command] = set(OPTION.findall(result.stdout)) if result.returncode == 0 else None
        return self.known[command]


def check_names(where, words, helps):
    """Errors of a command line: no such command, no such option."""
    if not words or words[0].startswith("-") or not re.fullmatch(r"[a-z-]+", words[0]):
        return []
    command = (words[0],)
    if helps.options(command) is None:
        return [f"{where}: there is no command `pmkvq {words[0]}`"]
    if len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]) and helps.options(tuple(words[:2])):
        command = tuple(words[:2])
    known = helps.options(command) | helps.options(command[:1]) | {"--help"}
    given = {word.split("=")[0] for word in words if re.fullmatch(r"--?[A-Za-z][\w-]*(=.*)?", word)}
    return [f"{where}: `pmkvq {' '.join(command)}` has no option {option}" for option in sorted(given - known)]


def make_scratch(root):
    scratch = tempfile.TemporaryDirectory(prefix="pmkvq-docs-")
    for folder in ("models", "tools", "docs", "tests", "results", "src", "bench", "third_party"):
        os.symlink(root / folder, pathlib.Path(scratch.name) / folder)
    return scratch


def run_block(script, scratch, program):
    environment = {**os.environ, "PATH": f"{pathlib.Path(program).parent}:{os.environ['PATH']}", "PMKVQ_HISTORY": ""}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=scratch, env=environment,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)


def missing_lines(shown, result):
    """Lines of a ```text block that the output of a block does not have."""
    output = " ".join((result.stdout + "\n" + result.stderr).split())
    missing = []
    for line in filter(str.strip, shown.splitlines()):
        parts = [re.escape(" ".join(part.split())) for part in line.split("...")]
        if not re.search(r"\s?.*?\s?".join(parts), output):
            missing.append(line)
    return missing


def shown_output(text, end):
    """The ```text block that follows position `end` of a page with nothing between, or ""."""
    match = FENCE.match(text, re.compile(r"\s*").match(text, end).end())
    return match.group(3) if match and match.group(1) == "text" else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=pathlib.Path)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    root, program = args.root.resolve(), args.program.resolve()
    helps = Helps(str(program))
    errors, ran, checked = [], 0, 0
    for path in documents(root):
        name = str(path.relative_to(root))
        if args.only and args.only != name:
            continue
        text = path.read_text()
        lines = [(m.start(), m.group(1)) for m in INLINE.finditer(text)]
        for offset, line in lines:
            for words in command_lines(line):
                checked += 1
                errors += check_names(f"{name}:{text.count(chr(10), 0, offset) + 1}", words, helps)
        scratch = make_scratch(root)
        for match in FENCE.finditer(text):
            language, note, script = match.groups()
            if language != "sh":
                continue
            where = f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
            if note != "fails":
                for words in command_lines(script):
                    checked += 1
                    errors += check_names(where, words, helps)
            if (note == "slow" or re.search(r"^\s*\./run ", script, re.M)) and not args.slow:
                continue
            start = time.monotonic()
            result = run_block(script, scratch.name, program)
            ran += 1
            print(f"{where}: exit code {result.returncode}, {time.monotonic() - start:.1f} s", flush=True)
            if (result.returncode != 0) != (note == "fails"):
                errors.append(f"{where}: exit code {result.returncode}\n{result.stderr[-2000:]}")
            for line in missing_lines(shown_output(text, match.end()), result):
                errors.append(f"{where}: the output does not have this line: {line}")
        scratch.cleanup()
    print(f"{ran} blocks ran, {checked} command lines checked, {len(errors)} errors")
    print("\n".join(errors))
    if not args.only and (ran == 0 or checked == 0):
        sys.exit("run_docs.py: found no command")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
