// USBGuard's own library as the judge: for each line "rule" or "rule<TAB>device", whether it reads the rule, and
// whether the rule applies to the device, which is written as a rule too.
#include <iostream>
#include <string>

#include <usbguard/Rule.hpp>

int main()
{
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto tab = line.find('\t');
    try {
      const auto rule = usbguard::Rule::fromString(line.substr(0, tab));
      if (tab == std::string::npos) {
        std::cout << "read\n";
      } else {
        const auto device = usbguard::Rule::fromString(line.substr(tab + 1));
        std::cout << (rule.appliesTo(device) ? "applies\n" : "does not apply\n");
      }
    } catch (const std::exception&) {
      std::cout << "refused\n";
    }
  }
}
