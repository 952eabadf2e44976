#!/usr/bin/env python3
"""Renders random conversations and random expressions with Jinja2, as transformers sets it up.

Usage: render_jinja_goldens.py ROOT [SEED]    (needs the Python package jinja2)

Writes ROOT/tests/golden/jinja/conversations.jsonl, with the templates of that folder and the fields
of cases.jsonl there, and expressions.json: one set of variables, and small templates with the text
that they give or the error that they raise.
"""
import datetime
import json
import pathlib
import random
import sys
import warnings

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

NUM_CONVERSATIONS = 320
NUM_EXPRESSIONS = 1200


class Generation(Extension):
    """transformers' {% generation %}: the text of its body."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def make_environment():
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = datetime.datetime(2026, 1, 1).strftime
    return environment


ENVIRONMENT = make_environment()


def render(source, variables):
    try:
        copy = json.loads(json.dumps(variables))  # No object is in there twice.
        return {"text": ENVIRONMENT.from_string(source).render(**copy)}
    except Exception as error:  # Whatever a template raises.
        return {"error": f"{type(error).__name__}: {error}"[:200]}


TEXTS = ["", "Hi", "What is 2+2?", "  spaced  \n", "line\nline2\n\n",
         "<think>\nhm\n</think>\n\nanswer", "a</think>b", "<|im_end|>", "\u4f60\u597d \U0001f600",
         "\u00a0x\u3000", "\u00c9 \"q\" 'a' \\ back", "<tool_response>\nx\n</tool_response>",
         '{"a": 1}', "/no_think", "/think do", "\x1c\x85z", "tab\there", "[THINK]x[/THINK]y",
         "&<>\"'", "a" * 70, "\u2028u"]


class Conversations:
    """Random messages, tools and switches."""

    def __init__(self, rng):
        self.rng = rng

    def chance(self, share):
        return self.rng.random() < share

    def text(self):
        return self.rng.choice(TEXTS)

    def value(self, depth=0):
        rng = self.rng
        kind = rng.randrange(9 if depth < 2 else 6)
        if kind == 7 or kind == 6:
            return [self.value(depth + 1) for _ in range(rng.randrange(3))]
        if kind == 8:
            return {rng.choice("abcdef"): self.value(depth + 1) for _ in range(rng.randrange(3))}
        number = rng.choice([1.5, 1e20, 0.1, 1e-7, 2.0, 123456789.125])
        return [None, True, False, rng.randrange(-5, 1000), number, self.text()][kind]

    def schema(self, depth=0):
        rng = self.rng
        kind = rng.choice(["string", "number", "integer", "boolean", "array", "object",
                           ["string", "null"], None])
        schema = {} if kind is None else {"type": kind}
        if self.chance(.5):
            schema["description"] = self.text()
        if kind == "array" and self.chance(.8):
            schema["items"] = self.schema(depth + 1) if depth < 2 else {"type": "string"}
        if kind == "object" and depth < 2:
            schema["properties"] = {rng.choice(["x", "y", "items", "keys", "name"]):
                                    self.schema(depth + 1) for _ in range(rng.randrange(3))}
        for share, name, value in ((.2, "enum", ["a", "b"]), (.2, "default", self.value(1)),
                                   (.1, "nullable", True), (.1, "required", ["x"]),
                                   (.1, "oneOf", [{"type": "string"}, {"type": "object"}])):
            if self.chance(share):
                schema[name] = value
        return schema

    def tool(self):
        rng = self.rng
        properties = {rng.choice(["city", "unit", "n", "items"]): self.schema()
                      for _ in range(rng.randrange(1, 4))}
        function = {"name": rng.choice(["get_weather", "add"]), "description": self.text() or "d",
                    "parameters": {"type": "object", "properties": properties,
                                   "required": ["city"]}}
        return {"type": "function", "function": function} if self.chance(.9) else function

    def call(self):
        rng = self.rng
        arguments = {rng.choice(["city", "n"]): self.value(1) for _ in range(rng.randrange(3))}
        function = {"name": rng.choice(["get_weather", "add"]),
                    "arguments": arguments if self.chance(.8) else json.dumps(arguments)}
        call = {"type": "function", "function": function}
        if self.chance(.6):
            call["id"] = rng.choice(["call_1", "123456789", "functions.add:0"])
        return call if self.chance(.9) else function

    def content(self):
        kind = self.rng.random()
        if kind < .8:
            return self.text()
        if kind < .93:
            return [{"type": "text", "text": self.text()} for _ in range(self.rng.randrange(3))]
        return [{"type": "image"}, {"type": "text", "text": self.text()}] if kind < .97 else None

    def message(self, role):
        message = {"role": role}
        if self.chance(.96):
            message["content"] = self.content()
        if role == "assistant":
            if self.chance(.25):
                message["reasoning_content"] = self.text()
            if self.chance(.1):
                message["thinking"] = self.text()
            if self.chance(.3):
                message["tool_calls"] = [self.call() for _ in range(self.rng.randrange(3))]
        if role == "tool":
            if self.chance(.7):
                message["tool_call_id"] = self.rng.choice(["call_1", "123456789"])
            if self.chance(.4):
                message["name"] = "add"
        return message

    def messages(self):
        if self.chance(.2):  # Any roles in any order.
            roles = ["user", "assistant", "system", "tool", "developer", "ipython"]
            return [self.message(self.rng.choice(roles)) for _ in range(self.rng.randrange(6))]
        messages = [self.message("system")] if self.chance(.5) else []
        for _ in range(self.rng.randrange(1, 4)):
            messages.append(self.message("user"))
            if not self.chance(.7):
                continue
            messages.append(self.message("assistant"))
            calls = messages[-1].get("tool_calls", [])
            messages += [self.message("tool") for _ in calls]
            if calls and self.chance(.6):
                messages.append(self.message("assistant"))
        return messages

    def variables(self):
        variables = {"messages": self.messages(), "bos_token": "<BOS>", "eos_token": "<EOS>",
                     "add_generation_prompt": self.chance(.7)}
        if self.chance(.35):
            variables["tools"] = [self.tool() for _ in range(self.rng.randrange(3))]
        for name in ("enable_thinking", "thinking"):
            if self.chance(.2):
                variables[name] = self.chance(.5)
        for name, value in (("documents", [{"title": "t", "text": self.text()}]),
                            ("reasoning_effort", "high"), ("date_string", "1 Jan 2020"),
                            ("builtin_tools", ["browser", "python"]), ("thinking_budget", 512)):
            if self.chance(.08):
                variables[name] = value
        return variables


VARIABLES = {
    "s": "Hello, W\u00f6rld! ", "e": "", "n": 5, "z": 0, "neg": -3, "f": 2.5, "t": True,
    "fa": False, "no": None, "l": [3, 1, 2], "ls": ["b", "A", "c", "a"],
    "d": {"b": 1, "A": 2, "items": "shadow", "k": None},
    "m": [{"role": "user", "content": "x", "n": 2}, {"role": "assistant", "content": "y\n", "n": 1},
          {"role": "user", "content": None}],
    "nest": {"a": {"b": [1, {"c": "deep"}]}}, "u": "\u00e9 \u00df \u01c6 \u0130 \u03a3\u03b1\u03c2 "
    "\ufb01 \u2028x\ty", "lines": "a\n\n b\r\nc", "mix": [1, "1", 1.0, True, None, [1], {"a": 1}],
    "big": 9007199254740993, "ws": "  \u00a0x\u3000\n", "num": "42", "fl": "3.70",
    "html": "<a & 'b'>", "emp": [], "ed": {},
}
ATOMS = [*VARIABLES, "undef", "1", "0", "-1", "2", "3.0", "'a'", "'lo'", "\"x'y\"", "none", "true",
         "[]", "{}", "[1,2]", "(1,2)", "()", "(1,)", "{'a':1}", "'%s-%d'", "range(3)", "dict(a=1)",
         "namespace(q=1)", "'\\n'", "' '", "','", "0.1", "1e100", "'a,b,,c'"]
FILTERS = """abs;attr('x');batch(2)|list;batch(2,'-')|list;capitalize;center(9);count;default('D');
d('D',true);dictsort;dictsort(true);dictsort(by='value');dictsort(reverse=true);e;first;float;
float(1);forceescape;format(1);format('a','b');groupby('role');groupby('n',default=0);indent;
indent(2,true);indent('> ',blank=true);int;int(7);int(base=16);items|list;join;join(',');
join(', ','role');join('-',attribute='content');last;length;list;lower;map('upper')|list;
map(attribute='role')|list;map(attribute='zz',default='q')|join(',');map('tojson')|join('|');max;
min;max(attribute='n');reject|list;reject('string')|list;rejectattr('content')|list;
rejectattr('role','equalto','user')|list;replace('l','L');replace('l','L',1);replace('','-');
reverse|list;round;round(1);round(1,'ceil');round(2,'floor');safe;select|list;
select('string')|list;select('odd')|list;selectattr('role','equalto','user')|list;
selectattr('n','defined')|list;selectattr('n')|list;slice(2)|list;slice(2,'f')|list;sort;
sort(reverse=true);sort(case_sensitive=true);sort(attribute='n');sort(attribute='role,n');string;sum;
sum(attribute='n');sum(start=3);title;tojson;tojson(indent=2);tojson(ensure_ascii=true);
tojson(sort_keys=true);tojson(separators=(',',':'));trim;trim('! ');truncate(5);
truncate(7,true,'..');truncate(4,leeway=0);unique|list;unique(true)|list;upper;urlencode;
wordcount""".replace("\n", "").split(";")
TESTS = """defined;undefined;none;boolean;true;false;integer;float;number;string;mapping;sequence;
iterable;odd;even;divisibleby(2);divisibleby 3;eq(1);equalto('a');ne 1;lt(3);gt 2;ge 1;le 1;
in [1,2];in 'abc';in d;sameas true;lower;upper;escaped;not none;not string;not defined;filter;
test""".replace("\n", "").split(";")
METHODS = """split();split(',');split('l');split(' ',1);split(none,1);rsplit();rsplit('l',1);
rsplit(none,1);strip();lstrip();rstrip();strip('H! ');rstrip(' \\n');startswith('He');
endswith('! ');startswith(('a','H'));startswith('l',2);endswith('o',0,5);replace('l','');
replace('l','__',1);upper();lower();title();capitalize();swapcase();find('l');rfind('l');find('zz');
index('l');index('zz');count('l');count('');find('l',3);rfind('l',0,3);isdigit();isalpha();
isspace();isalnum();isupper();islower();istitle();join(['a','b']);join(l);join('xy');zfill(8);
center(11);center(10,'*');ljust(9);rjust(9,'.');partition('l');rpartition('l');partition('zz');
rpartition('zz');splitlines();splitlines(true);removeprefix('He');removesuffix(' ');expandtabs(4);
format();format(1,a=2);items();keys();values();get('b');get('zz');get('zz',5);items()|list;
keys()|list|join;append(1);pop();update(a=1);index(1);count(1);nosuch""".replace(
    "\n", "").split(";")
SUBSCRIPTS = """[0];[-1];[5];['b'];['a']['b'][1].c;[1:];[:-1];[::-1];[1:3];[::2];[-2:];[3:1:-1];
[none];[0].role;.b;.a.b.1.c;.items;.0;.role;.zz;[-1].content;['items'];[true];[:];[5:];[-100:2];
[::-2];[100::-1]""".replace("\n", "").split(";")
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in",
             "not in", "and", "or"]
LOOP_PARTS = ["x", "loop.index", "loop.last", "loop.first", "loop.length", "loop.revindex",
              "loop.previtem", "loop.nextitem", "loop.cycle('p','q')", "loop.changed(x)", "ns.c"]


class Snippets:
    """Random small templates."""

    def __init__(self, rng):
        self.rng = rng

    def operand(self, depth):
        expression = self.expression(depth + 1)
        return expression if expression.isidentifier() else f"({expression})"

    def expression(self, depth=0):
        rng = self.rng
        kind = rng.random()
        if depth > 2 or kind < .2:
            return rng.choice(ATOMS)
        if kind < .38:
            return f"{self.operand(depth)}|{rng.choice(FILTERS)}"
        if kind < .5:
            return f"{self.operand(depth)}.{rng.choice(METHODS)}"
        if kind < .6:
            subscript = rng.choice(SUBSCRIPTS)
            # Slices of constants are folded, and then undefined where a program would raise.
            operand = rng.choice(list(VARIABLES)) if ":" in subscript else self.operand(depth)
            return f"{operand}{subscript}"
        if kind < .68:
            return f"{self.operand(depth)} is {rng.choice(TESTS)}"
        inner = [self.expression(depth + 1) for _ in range(3)]
        if kind < .84:
            return f"{inner[0]} {rng.choice(OPERATORS)} {inner[1]}"
        if kind < .88:
            return f"{inner[0]} if {inner[1]} else {inner[2]}"
        return rng.choice([f"{inner[0]} if {inner[1]}", f"(not {inner[0]})", f"-({inner[0]})",
                           f"[{inner[0]}, {inner[1]}]", f"({inner[0]})"])

    def block(self, text):
        sign = lambda: self.rng.choice(["", "", "-", "+"])
        before = self.rng.choice(["", " ", "\n", "\n  ", "x\n  ", "  x ", "\n\n"])
        after = self.rng.choice(["", " ", "\n", " \n"])
        return f"{before}{{%{sign()} {text} {sign()}%}}{after}"

    def body(self, depth):
        return "".join(self.statement(depth + 1) for _ in range(self.rng.randrange(3)))

    def statement(self, depth=0):
        rng = self.rng
        kind = rng.random()
        if depth > 2 or kind < .3:
            return rng.choice(["text", "{", "}", "%}", "{{ '{%' }}", "<b>\n", " \n"])
        if kind < .5:
            sign = rng.choice(["", "-"])
            return f"\n  {{{{{sign} {self.expression()} {sign}}}}}\n"
        if kind < .6:
            other = self.block("else") + self.body(depth) if rng.random() < .5 else ""
            return (self.block(f"if {self.expression()}") + self.body(depth) + other +
                    self.block("endif"))
        if kind < .75:
            return self.loop(depth)
        if kind < .8:
            target = rng.choice(["n", "q", "s", "ns.c", "q, w"])
            return self.block(f"set {target} = {self.expression()}")
        if kind < .84:
            return (self.block("set q" + rng.choice(["", "|upper", "|trim|title"])) +
                    self.body(depth) + self.block("endset") + "{{ q }}")
        if kind < .9:
            call = rng.choice(["(1)", "(1,2)", "()", "(o=3,p=4)", "(1,2,3)", "(1,zz=2)", "(*l)"])
            return (self.block(f"macro k(p, o={self.expression(2)})") + "{{ p }}|{{ o }}" +
                    rng.choice(["", "{{ varargs }}", "{{ kwargs }}", "{{ n }}"]) +
                    self.body(depth) + self.block("endmacro") + "{{ k" + call + " }}")
        if kind < .92:
            return ("{% macro w(a) %}[{{ caller(a) }}]{% endmacro %}" +
                    self.block(f"call(y) w({self.expression(2)})") + "{{ y }}" +
                    self.body(depth) + self.block("endcall"))
        opening, closing = rng.choice([
            ("filter upper", "endfilter"), ("filter indent(2)", "endfilter"),
            ("with q = 1, w = n", "endwith"), ("generation", "endgeneration"), ("raw", "endraw")])
        return self.block(opening) + self.body(depth) + self.block(closing)

    def loop(self, depth):
        rng = self.rng
        items = rng.choice(["l", "ls", "m", "d", "s[:3]", "range(4)", "emp", "undef", "n", "mix",
                            "m|selectattr('n')", "ls|sort"])
        chosen = rng.choice(["", " if x", " if x is string", " if ns.c < 2"])
        jump = rng.choice(["", self.block("set ns.c = ns.c + 1"),
                           self.block("if loop.index > 1") + self.block("break") +
                           self.block("endif"),
                           self.block("if loop.first") + self.block("continue") +
                           self.block("endif") + "after"])
        other = self.block("else") + self.body(depth) if rng.random() < .3 else ""
        return (self.block(f"for x in {items}{chosen}") + "{{ " + rng.choice(LOOP_PARTS) + " }} " +
                self.body(depth) + jump + other + self.block("endfor"))


# Python prints addresses of objects, and finds a few errors only when a generator is walked.
UNLIKE = (" at 0x", "<Macro", "<function", "built-in", "Exceeds the limit", "too large")


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    warnings.simplefilter("ignore")
    folder = root / "tests/golden/jinja"
    templates = {path.stem: path.read_text(encoding="utf-8")
                 for path in sorted(folder.glob("*.jinja"))}
    conversations = Conversations(rng)
    lines = []
    for i in range(NUM_CONVERSATIONS):
        name = list(templates)[i % len(templates)]
        variables = conversations.variables()
        case = {"template": name, "case": f"random {i}", **variables}
        lines.append(json.dumps({**case, **render(templates[name], variables)},
                                ensure_ascii=False))
    (folder / "conversations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    snippets = Snippets(rng)
    cases = []
    while len(cases) < NUM_EXPRESSIONS:
        if rng.random() < .6:
            source = "{{ " + snippets.expression() + " }}"
        else:
            source = "{% set ns = namespace(c=0) %}" + "".join(
                snippets.statement() for _ in range(rng.randrange(1, 4)))
        result = render(source, VARIABLES)
        if len(source) < 600 and not any(part in str(result) for part in UNLIKE):
            cases.append({"source": source, **result})
    rows = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    text = json.dumps(VARIABLES, ensure_ascii=False)
    (folder / "expressions.json").write_text(
        f'{{"variables": {text},\n"cases": [\n{rows}\n]}}\n', encoding="utf-8")
    print(f"{folder}: {len(lines)} conversations, {len(cases)} expressions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
