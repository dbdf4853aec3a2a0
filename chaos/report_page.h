// The report's HTML page, with kReportDataMark where its data goes.
#pragma once

namespace pollux::chaos {

extern const char* const kReportPage;
inline constexpr const char* kReportDataMark = "/*DATA*/null";

}  // namespace pollux::chaos
