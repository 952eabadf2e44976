#include "pmkvq/text/jinja/template.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json_lines.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/tokenizer.h"
#include "support/cpu_time.h"
#include "support/expect_error.h"

namespace pmkvq::jinja {
namespace {

using testing_support::ExpectError;

const std::string kRoot = PMKVQ_SOURCE_DIR;

Variables VariablesOf(const JsonValue& object) {
  Variables variables;
  for (const std::string& name : object.Keys()) {
    variables.emplace_back(name, FromJson(object.Find(name)));
  }
  return variables;
}

std::string Rendered(const std::string& source, const std::string& variables = "{}") {
  return Template::Parse(source, "t")
      ->Render(VariablesOf(JsonValue::Parse(variables, "variables")))
      .text;
}

// What a rendering with Jinja2 gave, or that it raised.
void ExpectAsJinja(const std::string& source, const Variables& variables, const JsonValue& expected,
                   const std::string& name) {
  std::string text;
  std::string error;
  try {
    text = Template::Parse(source, "t")->Render(variables).text;
  } catch (const Error& failure) {
    error = failure.what();
  }
  if (expected.Has("error")) {
    EXPECT_FALSE(error.empty()) << name << ": expected " << expected.At("error").AsString()
                                << ", found the text " << text;
    EXPECT_EQ(error.find('\n'), std::string::npos) << name;
  } else {
    EXPECT_EQ(error, "") << name;
    EXPECT_EQ(text, expected.At("text").AsString()) << name;
  }
}

// Cases with the fields of tests/golden/jinja/cases.jsonl; the number of them.
int64_t CheckCases(const std::string& file) {
  return ForEachLine(kRoot + "/tests/golden/jinja/" + file,
                     [&](std::string_view line, const std::string& where, int64_t) {
                       const JsonValue json = JsonValue::Parse(line, where);
                       const std::string path = fmt::format("{}/tests/golden/jinja/{}.jinja", kRoot,
                                                            json.At("template").AsString());
                       ExpectAsJinja(ReadFile(path), VariablesOf(json), json, where);
                     });
}

TEST(JinjaGolden, PublishedTemplates) { EXPECT_EQ(CheckCases("cases.jsonl"), 240); }

TEST(JinjaGolden, ConversationsOfEveryShape) { EXPECT_GE(CheckCases("conversations.jsonl"), 300); }

TEST(JinjaGolden, Expressions) {
  const JsonValue all = JsonValue::ParseFile(kRoot + "/tests/golden/jinja/expressions.json");
  const Variables variables = VariablesOf(all.At("variables"));
  const JsonValue cases = all.At("cases");
  ASSERT_GE(cases.size(), 1000u);
  for (size_t i = 0; i < cases.size(); ++i) {
    const JsonValue one = cases.At(i);
    const std::string source = one.At("source").AsString();
    ExpectAsJinja(source, variables, one, source);
  }
}

// The parts of a text that came from the variables, in brackets.
std::string Marked(const std::string& source, const std::string& variables) {
  const MarkedText text =
      Template::Parse(source, "t")->Render(VariablesOf(JsonValue::Parse(variables, "variables")));
  std::string result;
  size_t done = 0;
  for (const ByteRange& range : text.input) {
    EXPECT_LT(range.begin, range.end);
    result += text.text.substr(done, range.begin - done) + "[" +
              text.text.substr(range.begin, range.end - range.begin) + "]";
    done = range.end;
  }
  return result + text.text.substr(done);
}

TEST(JinjaMarks, FollowTheTextOfTheUser) {
  const std::string variables = R"({"u":" <s>aB ","l":["x","y"],"n":3,"d":{"k":"v"}})";
  EXPECT_EQ(Marked("<s>{{ u }}<s>", variables), "<s>[ <s>aB ]<s>");
  EXPECT_EQ(Marked("{{ '<s>' + u + '<t>' }}", variables), "<s>[ <s>aB ]<t>");
  EXPECT_EQ(Marked("{{ '<s>' ~ u|trim ~ n }}", variables), "<s>[<s>aB]3");
  EXPECT_EQ(Marked("{{ (u ~ 'q')|upper }}", variables), "[ <S>AB ]Q");
  EXPECT_EQ(Marked("{{ u|replace('a', 'é') }}", variables), "[ <s>]é[B ]");
  EXPECT_EQ(Marked("{{ 'a-b'|replace('-', u) }}", variables), "a[ <s>aB ]b");
  EXPECT_EQ(Marked("{{ ('<s>' + u)[1:6] }}", variables), "s>[ <s]");
  EXPECT_EQ(Marked("{{ ('ab' + u)[::-1] }}", variables), "[ Ba>s< ]ba");
  EXPECT_EQ(Marked("{{ u.split('>')[-1] }}", variables), "[aB ]");
  EXPECT_EQ(Marked("{{ l|join('<s>') }}", variables), "[x]<s>[y]");
  EXPECT_EQ(Marked("{{ l }}", variables), "['[x]', '[y]']");
  EXPECT_EQ(Marked("{{ d|tojson }}", variables), R"({"[k]": "[v]"})");
  EXPECT_EQ(Marked("{{ u|tojson }}", R"({"u":"a\"\nb"})"), R"("[a\"\nb]")");
  EXPECT_EQ(Marked("{{ '%s<s>%d' % (u, n) }}", variables), "[ <s>aB ]<s>3");
  EXPECT_EQ(Marked("{{ '{}<s>'.format(u) }}", variables), "[ <s>aB ]<s>");
  EXPECT_EQ(Marked("{{ (u ~ '<s>') * 2 }}", variables), "[ <s>aB ]<s>[ <s>aB ]<s>");
  EXPECT_EQ(Marked("{{ u|indent(1, true) }}", R"({"u":"a\nb"})"), " [a]\n [b]");
  EXPECT_EQ(Marked("{{ u|e }}", R"({"u":"a<b"})"), "[a&lt;b]");
  EXPECT_EQ(Marked("{% set x %}<s>{{ u }}{% endset %}{{ x }}", variables), "<s>[ <s>aB ]");
  EXPECT_EQ(Marked("{% macro m(a) %}({{ a }}){% endmacro %}{{ m(u) }}", variables), "([ <s>aB ])");
  EXPECT_EQ(Marked("{% filter lower %}Q{{ u }}{% endfilter %}", variables), "q[ <s>ab ]");
  EXPECT_EQ(Marked("{% for c in l[0] + 'z' %}{{ c }}{% endfor %}", variables), "[x]z");
  EXPECT_EQ(Marked("{{ namespace(a=u).a }}{{ dict(a=u)['a'] }}", variables), "[ <s>aB  <s>aB ]");
}

TEST(JinjaParse, UnknownConstructsAreRefusedWithTheirLine) {
  const auto refused = [](const std::string& source, std::initializer_list<std::string> words) {
    ExpectError<Unsupported>([&] { Template::Parse("a\n\n" + source, "t.jinja"); }, words);
  };
  refused("{% include 'x' %}", {"t.jinja", "line 3", "statement \"include\""});
  refused("{% extends 'x' %}", {"line 3", "\"extends\""});
  refused("{% import 'x' as y %}", {"\"import\""});
  refused("{% block b %}{% endblock %}", {"\"block\""});
  refused("{% do x %}", {"\"do\""});
  refused("{{ x|xmlattr }}", {"line 3", "filter \"xmlattr\""});
  refused("{{ x|map('nosuch') }}", {"filter \"nosuch\""});
  refused("{{ x|selectattr('a', 'nosuch') }}", {"test \"nosuch\""});
  refused("{% if x is nosuch %}{% endif %}", {"test \"nosuch\""});
  refused("{{ lipsum() }}", {"function \"lipsum\""});
  refused("{{ x.encode('utf-8') }}", {"method \"encode\""});
  refused("{% for x in y recursive %}{% endfor %}", {"recursive"});
  // What a template tests before it calls it is no reason.
  EXPECT_EQ(Rendered("{% if lipsum is defined %}{{ lipsum() }}{% endif %}-"), "-");
  EXPECT_EQ(Rendered("{% set ns = namespace(f=none) %}{% macro m() %}1{% endmacro %}"
                     "{% set ns.f = m %}{{ ns.f() }}"),
            "1");
}

TEST(JinjaParse, WrongSyntaxIsNamedWithItsLine) {
  const auto wrong = [](const std::string& source, std::initializer_list<std::string> words) {
    ExpectError<InvalidInput>([&] { Template::Parse("a\n" + source, "t.jinja"); }, words);
  };
  wrong("{{ x", {"t.jinja", "line 2", "}}"});
  wrong("{% if x %}", {"endif"});
  wrong("{% endif %}", {"endif"});
  wrong("{{ ) }}", {"\")\""});
  wrong("{{ (x] }}", {"\"]\""});
  wrong("{{ 'x }}", {"string"});
  wrong("{# x", {"#}"});
  wrong("{% raw %}x", {"endraw"});
  wrong("{{ 1 + }}", {"an expression"});
  wrong("{{ x.1y }}", {"line 2"});
  wrong("{{ x ? y }}", {"?"});
  wrong("{% break %}", {"break", "loop"});
  wrong("{% for x in y %}{% macro m() %}{% continue %}{% endmacro %}{% endfor %}", {"continue"});
  wrong("{{ 99999999999999999999 }}", {"64 bits"});
  wrong("{{ '\\ud800' }}", {"escape"});
  wrong("{% set 1 = 2 %}", {"name"});
  wrong("{{ f(a=1, 2) }}", {"arguments"});
  ExpectError<InvalidInput>([] { Template::Parse("\xff", "t"); }, {"0xff", "UTF-8"});
}

// What a message quotes of the template may hold line breaks, and is cut between characters.
TEST(JinjaParse, MessagesAreOneLineWhateverTheyQuote) {
  const std::string name(400, 'x');
  std::string wide;
  for (int i = 0; i < 400; ++i) wide += "é";
  for (const std::string& source : std::vector<std::string>{
           std::string("{{ '\\u}\n0e9' }}"), std::string("{{ 'a\nb' 'c\nd' e }}"),
           std::string("{{ '\\x\n1' }}"), std::string("{% if 'a\nb' x %}"), "{% " + name + " %}",
           "{{ f('" + wide + "' 1) }}", std::string("{% for '\n' in x %}"),
           std::string("{{ 1 if '\n' '\n' }}"), std::string("{% set 'a\r\nb' = 1 %}")}) {
    try {
      Template::Parse(source, "t");
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      EXPECT_EQ(ValidUtf8Prefix(message), message.size()) << message;
      EXPECT_LT(message.size(), 1000u);
    }
  }
}

TEST(JinjaRender, SplitsKeepTheWhiteSpaceOfTheRest) {
  EXPECT_EQ(Rendered("{{ '  a b  c '.split(none, 1) }}"), "['a', 'b  c ']");
  EXPECT_EQ(Rendered("{{ '  a b  c '.rsplit(none, 1) }}"), "['  a b', 'c']");
  EXPECT_EQ(Rendered("{{ '  '.split(none, 0) }}{{ '  '.rsplit(none, 0) }}"), "[][]");
}

TEST(JinjaRender, ErrorsNameTheLine) {
  const auto fails = [](const std::string& source, std::initializer_list<std::string> words) {
    ExpectError<InvalidInput>([&] { Rendered("a\n" + source); }, words);
  };
  fails("{{ x.y }}", {"[t]", "line 2", "'x' is undefined"});
  fails("{{ {}.y.z }}", {"'dict object' has no attribute 'y'"});
  fails("{{ raise_exception('Roles must\nalternate') }}", {"line 2", "Roles must alternate"});
  fails("{{ 'a' + [] }}", {"can only concatenate str"});
  fails("{{ [].append(1) }}", {"append", "unsafe"});
  fails("{% for x in none %}{% endfor %}", {"NoneType", "iterable"});
  fails("{{ 1 // 0 }}", {"zero"});
  fails("{{ 9223372036854775807 + 1 }}", {"64 bits"});
  fails("{% set a, b = [1] %}", {"found 1", "expected 2"});
  fails("{% set x = 1 %}{% set x.y = 1 %}", {"namespace"});
  fails("{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", {"macro 'm'"});
  fails("{{ []|map('upper') }}", {"generator"});
}

TEST(JinjaRender, StrftimeNowTakesTheGivenDay) {
  const auto chat_template =
      Template::Parse("{{ strftime_now('%d %b %Y, %-d %A %H:%M %j%%') }}", "t");
  EXPECT_EQ(chat_template->Render({}).text, "01 Jan 2026, 1 Thursday 00:00 001%");
  EXPECT_EQ(chat_template->Render({}, {2024, 2, 29, 13, 5, 0}).text,
            "29 Feb 2024, 29 Thursday 13:05 060%");
  ExpectError<InvalidInput>([] { Rendered("{{ strftime_now('%E') }}"); }, {"%E"});
}

// Each would take minutes, gigabytes or the whole stack without bounds.
TEST(JinjaLimits, AttacksEndInOneLine) {
  const auto deep = [](const char* open, const char* middle, const char* close, int times) {
    std::string text;
    for (int i = 0; i < times; ++i) text += open;
    text += middle;
    for (int i = 0; i < times; ++i) text += close;
    return text;
  };
  const std::vector<std::pair<std::string, std::string>> attacks = {
      {"{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"},
      {"{% for a in range(999999999) %}{% endfor %}", "range"},
      {"{{ range(-9223372036854775807, 9223372036854775807) }}", "range"},
      {"{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "levels"},
      {"{% macro m(x) %}{{ x }}{{ m(x + x) }}{% endmacro %}{{ m('ab') }}", ""},
      {"{{ 'x' * 99999999999 }}", "memory"},
      {"{{ [1] * 99999999999 }}", "memory"},
      {"{{ ('x' * 1000000) * 1000000 }}", "memory"},
      {"{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}"
       "{% endfor %}",
       "memory"},
      {"{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}"
       "{% endfor %}",
       "memory"},
      {"{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}"
       "{% endfor %}",
       "nested"},
      {"{% set ns = namespace(s={}) %}{% for i in range(99999) %}{% set ns.s = {'a': ns.s} %}"
       "{% endfor %}",
       "nested"},
      {"{% set ns = namespace(s='') %}{% for i in range(99999) %}{% set ns.s = ns.s.strip %}"
       "{% endfor %}",
       ""},
      {"{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}", "nested"},
      {"{% for i in range(11) %}{{ 'x' * 1000000 }}{% endfor %}", "prompt"},
      {"{{ 'a'|center(99999999999) }}", "steps"},
      {"{{ 'a'.ljust(99999999999) }}", ""},
      {"{{ '%99999999999s' % 1 }}", "wider"},
      {"{{ '%.99999999999f' % 1.5 }}", "wider"},
      {"{{ '{:>99999999999}'.format(1) }}", "wider"},
      {"{{ 'a'|indent(99999999999, true) }}", "memory"},
      {"{{ ('a' * 100000)|replace('', 'b' * 100000) }}", "memory"},
      {"{{ 'a\t'.expandtabs(99999999999) }}", ""},
      {"{{ [1]|batch(99999999999, 0)|list }}", "memory"},
      {"{{ [1]|slice(99999999999)|list }}", "memory"},
      {"{{ [[1]]|sum(start=[]) }}{{ range(99999)|map('string')|map('center', 9999)|list }}", ""},
      {"{{ 9 ** 9 ** 9 }}", "64 bits"},
      {"{% for i in range(99999) %}{% set x = ('a' * 1000000) in ('b' * 2000000) %}{% endfor %}",
       "steps"},
      {deep("{{ ", "1", " }}", 1) + deep("{{ (", "1", ") }}", 0) + "{{ " +
           deep("(", "1", ")", 100000) + " }}",
       "nested"},
      {"{{ " + deep("[", "", "]", 100000) + " }}", "nested"},
      {"{{ " + deep("not ", "1", "", 100000) + " }}", "nested"},
      {"{{ " + deep("-", "1", "", 100000) + " }}", "nested"},
      {"{{ " + deep("{1:", "1", "}", 100000) + " }}", "nested"},
      {"{{ 1" + deep(" + 1", "", "", 100000) + " }}", "levels"},
      {"{{ x" + deep("|trim", "", "", 100000) + " }}", "levels"},
      {"{{ x" + deep("[0]", "", "", 100000) + " }}", "levels"},
      {deep("{% if 1 %}", "", "{% endif %}", 20000), "nested"},
      {deep("{% for x in [1] %}", "", "{% endfor %}", 20000), "nested"},
      {"{% set " + deep("(", "a", ")", 100000) + " = 1 %}", "nested"},
      {"{% filter upper" + deep("|trim", "", "", 100000) + " %}{% endfilter %}", "levels"},
      {std::string(2 << 20, 'x'), "bytes"},
  };
  for (const auto& [source, word] : attacks) {
    const double start = testing_support::CpuSeconds();
    std::string error;
    try {
      Rendered(source);
    } catch (const InvalidInput& failure) {
      error = failure.what();
    }
    const double seconds = testing_support::CpuSeconds() - start;
    EXPECT_NE(error, "") << source.substr(0, 100);
    EXPECT_NE(error.find(word), std::string::npos) << source.substr(0, 100) << "\n" << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    EXPECT_LT(error.size(), 300u) << error;
    EXPECT_LT(seconds, 60) << source.substr(0, 100);  // A tenth of a second or two, alone.
  }
}

TEST(JinjaLimits, AreParameters) {
  Limits limits;
  limits.max_output_bytes = 4;
  EXPECT_EQ(Template::Parse("abcd", "t", limits)->Render({}).text, "abcd");
  ExpectError<InvalidInput>([&] { Template::Parse("abcde", "t", limits)->Render({}); },
                            {"prompt", "4 bytes"});
  limits = {};
  limits.max_steps = 10;
  ExpectError<InvalidInput>(
      [&] { Template::Parse("{% for x in range(9) %}{% endfor %}", "t", limits)->Render({}); },
      {"10 steps"});
}

}  // namespace
}  // namespace pmkvq::jinja
