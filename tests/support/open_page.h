// Opens pages in headless Chromium.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "support/run_program.h"

namespace pmkvq::testing_support {

// A page as the browser has it after its scripts ran, and what it said meanwhile.
struct OpenedPage {
  std::string dom;
  std::string log;
};

inline OpenedPage Open(const std::string& path) {
  const TempFolder folder;
  const std::string command =
      "timeout 90 chromium --headless --no-sandbox --disable-gpu --no-first-run "
      "--disable-background-networking --disable-component-update --enable-logging=stderr --v=0 "
      "--user-data-dir=" +
      folder.File("profile") + " --dump-dom file://" + path + " >" + folder.File("dom") + " 2>" +
      folder.File("log") + " </dev/null";
  const int status = std::system(command.c_str());
  EXPECT_EQ(status, 0) << "chromium (scripts/install-deps.sh test) failed: "
                       << Slurp(folder.File("log"));
  return {Slurp(folder.File("dom")), Slurp(folder.File("log"))};
}

// The opening <html ...> tag, where the page's scripts leave their marks.
inline std::string RootTag(const OpenedPage& page) {
  const size_t begin = page.dom.find("<html");
  return page.dom.substr(begin, page.dom.find('>', begin) - begin);
}

inline void ExpectDrawn(const std::string& path) {
  const OpenedPage page = Open(path);
  EXPECT_NE(RootTag(page).find("data-rendered=\"true\""), std::string::npos) << RootTag(page);
  EXPECT_EQ(RootTag(page).find("data-error"), std::string::npos) << RootTag(page);
  // Scripts that fail and loads that are refused show up here.
  EXPECT_EQ(page.log.find("CONSOLE"), std::string::npos) << page.log;
}

}  // namespace pmkvq::testing_support
