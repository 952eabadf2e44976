// Files that the build puts into the program (cmake/embed.cmake).
#pragma once

#include <string_view>

namespace pmkvq::embedded {

extern const std::string_view kChartJs;  // third_party/chart.js
extern const std::string_view kPageCss;  // research/report/html_page.css
extern const std::string_view kPageJs;   // research/report/html_page.js

}  // namespace pmkvq::embedded
