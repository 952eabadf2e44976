#!/usr/bin/env python3
"""Manual pages and completion of the program, against its own --help.

Usage: program_files_test.py PROGRAM

Every command has a page, every option stands in it; bash, zsh and fish complete commands, options and values at a
real terminal. Shells that are not installed are named and left out.
"""
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())


def run(*arguments):
    return subprocess.run([PROGRAM, *arguments], check=True, capture_output=True, text=True).stdout


def help_of(command):
    return run(*command, "--help")


def commands_below(group=()):
    """All commands, groups too: ("bench",), ("bench", "gemv")."""
    found = []
    in_section = False
    for line in help_of(group).splitlines():
        if line.endswith(":"):
            in_section = line == "Commands:"
        elif in_section and re.match(r"  \w", line):
            command = (*group, line.split()[0])
            found += [command, *commands_below(command)]
    return found


def options_of(command):
    """Names of all options: "-f", "--file"."""
    names = []
    for line in help_of(command).splitlines():
        match = re.match(r"  (-[^ ]+)", line)
        if match:
            names += match.group(1).split(",")
    return names


COMMANDS = commands_below()


class Pages(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        run("man", "--out", self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def test_every_command_has_a_page_with_its_options(self):
        self.assertGreater(len(COMMANDS), 20)
        pages = {path.name for path in pathlib.Path(self.folder.name).iterdir()}
        self.assertEqual(pages, {"-".join(("pmkvq", *command)) + ".1" for command in [(), *COMMANDS]})
        for command in [(), *COMMANDS]:
            page = pathlib.Path(self.folder.name, "-".join(("pmkvq", *command)) + ".1").read_text()
            options = options_of(command)
            self.assertTrue(options, command)
            for option in options:
                self.assertIn("\\fB" + option.replace("-", "\\-") + "\\fR", page, command)
            self.assertEqual(page, run("man", *command))

    def test_mandoc_finds_no_error(self):
        if not shutil.which("mandoc"):
            self.skipTest("mandoc is not installed")
        for path in sorted(pathlib.Path(self.folder.name).iterdir()):
            result = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", path], capture_output=True, text=True)
            self.assertEqual(result.stdout, "", path.name)
            text = subprocess.run(["mandoc", "-T", "ascii", path], check=True, capture_output=True, text=True).stdout
            plain = re.sub(".\b", "", text)
            for section in ("NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS"):
                self.assertIn("\n" + section + "\n", plain, path.name)

    def test_unknown_command_is_wrong_usage(self):
        result = subprocess.run([PROGRAM, "man", "rnu"], capture_output=True, text=True)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("pmkvq rnu", result.stderr)


class Scripts(unittest.TestCase):
    def test_every_command_and_option_is_there(self):
        scripts = {shell: run("completion", shell) for shell in ("bash", "zsh", "fish")}
        for command in COMMANDS:
            for shell, script in scripts.items():
                self.assertIn("pmkvq " + " ".join(command), script, shell)
            for option in options_of(command):
                self.assertRegex(scripts["bash"], rf"[ '|]{re.escape(option)}[ '|)]")
                self.assertIn(f"'*{option}", scripts["zsh"])
                name = option.lstrip("-")
                self.assertRegex(scripts["fish"], rf" -{'l' if option.startswith('--') else 's'} {re.escape(name)} ")


class Terminal:
    """A shell at a terminal of 200 columns, in a folder with two files."""

    def __init__(self, arguments, setup):
        self.folder = tempfile.TemporaryDirectory()
        home = pathlib.Path(self.folder.name)
        (home / "plan-of-mine.json").touch()
        (home / "models").mkdir()
        for shell in ("bash", "zsh"):
            (home / f".completion.{shell}").write_text(run("completion", shell))
        binaries = home / ".bin"
        binaries.mkdir()
        (binaries / "pmkvq").symlink_to(PROGRAM)
        environment = {"HOME": str(home), "PATH": f"{binaries}:{os.environ['PATH']}", "TERM": "dumb",
                       "LC_ALL": "C.UTF-8", "COLUMNS": "200", "LINES": "60"}
        self.process, self.descriptor = pty.fork()
        if self.process == 0:
            os.chdir(home)
            os.execvpe(arguments[0], arguments, environment)
        for line in [*setup, "echo re''ady"]:
            self.send(line + "\n")
        self.read_until("ready")

    def send(self, text):
        os.write(self.descriptor, text.encode())

    def read_until(self, text, seconds=60.0):
        data = ""
        end = time.monotonic() + seconds
        while text not in data:
            if time.monotonic() > end:
                raise AssertionError(f"{text!r} did not come within {seconds} s: {data!r}")
            if select.select([self.descriptor], [], [], 0.2)[0]:
                data += os.read(self.descriptor, 65536).decode(errors="replace")
        return data

    def complete(self, line, expected):
        """What is shown for `line` and Tab, until `expected` is."""
        self.send(line)
        self.read_until(line.split()[-1])
        self.send("\t")
        shown = self.read_until(expected)
        time.sleep(0.3)
        while select.select([self.descriptor], [], [], 0.1)[0]:
            shown += os.read(self.descriptor, 65536).decode(errors="replace")
        self.send("\x15")  # Clears the line; Ctrl-C would throw away what is typed behind it.
        self.send("echo do''ne\n")
        self.read_until("done")
        return shown

    def close(self):
        self.send("\x15exit\n")
        os.close(self.descriptor)
        os.waitpid(self.process, 0)
        self.folder.cleanup()


def check_shell(test, terminal):
    """The same questions to bash and zsh, which show candidates at once or finish the word."""
    terminal.complete("pmkvq calib", "rate")
    terminal.complete("pmkvq bench g", "emv")
    terminal.complete("pmkvq run --prompt-cache-", "ro")
    terminal.complete("pmkvq run --policy old", "est-first")
    terminal.complete("pmkvq run --policy=old", "est-first")
    terminal.complete("pmkvq run --chat --chat-template deep", "seek-r1")
    terminal.complete("pmkvq run --plan plan-of", "-mine.json")
    terminal.complete("pmkvq completion fi", "sh")
    shown = terminal.complete("pmkvq run --kv stat", "ic-")
    test.assertNotIn("plan-of-mine", shown)
    shown = terminal.complete("pmkvq run --model mod", "els")
    test.assertNotIn("plan-of-mine", shown)


class Shells(unittest.TestCase):
    def setUp(self):
        self.terminal = None

    def tearDown(self):
        if self.terminal:
            self.terminal.close()

    def test_bash(self):
        self.terminal = Terminal(["bash", "--norc", "--noprofile", "-i"],
                                 ["PS1='> '", "bind 'set show-all-if-ambiguous on'", "bind 'set enable-bracketed-paste off'",
                                  "source ~/.completion.bash"])
        check_shell(self, self.terminal)
        shown = self.terminal.complete("pmkvq run --kv static-", "static-8")
        self.assertIn("static-4", shown)

    def test_zsh(self):
        if not shutil.which("zsh"):
            self.skipTest("zsh is not installed")
        self.terminal = Terminal(["zsh", "-f", "-i"],
                                 ["PS1='> '", "unsetopt zle_bracketed_paste prompt_sp; unset zle_bracketed_paste",
                                  "autoload -U compinit && compinit -u -d ~/.zcompdump",
                                  "source ~/.completion.zsh"])
        check_shell(self, self.terminal)

    def test_fish(self):
        if not shutil.which("fish"):
            self.skipTest("fish is not installed")
        with tempfile.TemporaryDirectory() as folder:
            script = pathlib.Path(folder, "pmkvq.fish")
            script.write_text(run("completion", "fish"))
            pathlib.Path(folder, "plan-of-mine.json").touch()

            def complete(line):
                result = subprocess.run(["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"],
                                        check=True, capture_output=True, text=True, cwd=folder,
                                        env={**os.environ, "HOME": folder})
                return [found.split("\t")[0] for found in result.stdout.splitlines()]

            self.assertEqual(complete("pmkvq calib"), ["calibrate"])
            self.assertEqual(complete("pmkvq bench g"), ["gemv"])
            self.assertEqual(complete("pmkvq run --prompt-cache-"), ["--prompt-cache-ro"])
            self.assertEqual(complete("pmkvq run --policy old"), ["oldest-first"])
            self.assertEqual(sorted(complete("pmkvq run --kv stat")), ["static-2", "static-4", "static-8"])
            self.assertEqual(complete("pmkvq run --plan plan-of"), ["plan-of-mine.json"])
            self.assertIn("deepseek-r1", complete("pmkvq run --chat-template deep"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
