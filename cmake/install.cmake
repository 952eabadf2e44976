# cmake --install: the program, the headers, and a package that gives pmkvq::pmkvq.
include(CMakePackageConfigHelpers)

add_library(pmkvq_all INTERFACE)
set_target_properties(pmkvq_all PROPERTIES EXPORT_NAME pmkvq)
target_link_libraries(pmkvq_all INTERFACE pmkvq_compare pmkvq_analysis)
target_compile_features(pmkvq_all INTERFACE cxx_std_20)

install(TARGETS ${PMKVQ_MODULES} pmkvq_all EXPORT pmkvq-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/pmkvq)
install(EXPORT pmkvq-targets NAMESPACE pmkvq:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pmkvq)
install(DIRECTORY src/pmkvq DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h" PATTERN "*-inl.h" EXCLUDE PATTERN "*_impl.h" EXCLUDE
  PATTERN "detail.h" EXCLUDE)
configure_package_config_file(cmake/pmkvq-config.cmake.in
  ${CMAKE_BINARY_DIR}/pmkvq-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pmkvq)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/pmkvq-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/pmkvq-config.cmake ${CMAKE_BINARY_DIR}/pmkvq-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pmkvq)
