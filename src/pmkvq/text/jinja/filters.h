// The filters: on text, on items, on values. Internal to text/jinja.
#pragma once

#include "pmkvq/text/jinja/library.h"

namespace pmkvq::jinja {

#define PMKVQ_JINJA_FILTER(name) \
  Value name(Interpreter& interpreter, const Value& value, const Arguments& arguments)

// filters_text.cc
PMKVQ_JINJA_FILTER(FilterCapitalize);
PMKVQ_JINJA_FILTER(FilterCenter);
PMKVQ_JINJA_FILTER(FilterEscape);
PMKVQ_JINJA_FILTER(FilterForceEscape);
PMKVQ_JINJA_FILTER(FilterFormat);
PMKVQ_JINJA_FILTER(FilterIndent);
PMKVQ_JINJA_FILTER(FilterLower);
PMKVQ_JINJA_FILTER(FilterReplace);
PMKVQ_JINJA_FILTER(FilterSafe);
PMKVQ_JINJA_FILTER(FilterString);
PMKVQ_JINJA_FILTER(FilterTitle);
PMKVQ_JINJA_FILTER(FilterToJson);
PMKVQ_JINJA_FILTER(FilterTrim);
PMKVQ_JINJA_FILTER(FilterTruncate);
PMKVQ_JINJA_FILTER(FilterUpper);
PMKVQ_JINJA_FILTER(FilterUrlEncode);
PMKVQ_JINJA_FILTER(FilterWordCount);

// filters_items.cc
PMKVQ_JINJA_FILTER(FilterBatch);
PMKVQ_JINJA_FILTER(FilterDictSort);
PMKVQ_JINJA_FILTER(FilterFirst);
PMKVQ_JINJA_FILTER(FilterGroupBy);
PMKVQ_JINJA_FILTER(FilterItems);
PMKVQ_JINJA_FILTER(FilterJoin);
PMKVQ_JINJA_FILTER(FilterLast);
PMKVQ_JINJA_FILTER(FilterLength);
PMKVQ_JINJA_FILTER(FilterList);
PMKVQ_JINJA_FILTER(FilterMap);
PMKVQ_JINJA_FILTER(FilterMax);
PMKVQ_JINJA_FILTER(FilterMin);
PMKVQ_JINJA_FILTER(FilterReject);
PMKVQ_JINJA_FILTER(FilterRejectAttr);
PMKVQ_JINJA_FILTER(FilterReverse);
PMKVQ_JINJA_FILTER(FilterSelect);
PMKVQ_JINJA_FILTER(FilterSelectAttr);
PMKVQ_JINJA_FILTER(FilterSlice);
PMKVQ_JINJA_FILTER(FilterSort);
PMKVQ_JINJA_FILTER(FilterSum);
PMKVQ_JINJA_FILTER(FilterUnique);

// filters_values.cc
PMKVQ_JINJA_FILTER(FilterAbs);
PMKVQ_JINJA_FILTER(FilterAttr);
PMKVQ_JINJA_FILTER(FilterDefault);
PMKVQ_JINJA_FILTER(FilterFloat);
PMKVQ_JINJA_FILTER(FilterInt);
PMKVQ_JINJA_FILTER(FilterRound);

#undef PMKVQ_JINJA_FILTER

}  // namespace pmkvq::jinja
