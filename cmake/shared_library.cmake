# BUILD_SHARED_LIBS: what generates text as one libpmkvq.so.0.1; static libraries and pmkvq::research are
# not installed then. The ABI is not promised before 1.0, so each minor version has its own name. The
# program keeps its static libraries.
list(JOIN product_modules "," product_list)
file(WRITE ${PROJECT_BINARY_DIR}/shared_library.cc "namespace pmkvq {}\n")
add_library(pmkvq_shared SHARED ${PROJECT_BINARY_DIR}/shared_library.cc)
set_target_properties(pmkvq_shared PROPERTIES OUTPUT_NAME pmkvq EXPORT_NAME shared
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/shared_library.map
  # All objects, as nothing inside asks for them.
  LINK_LIBRARY_OVERRIDE "WHOLE_ARCHIVE,${product_list}")
target_compile_features(pmkvq_shared INTERFACE cxx_std_20)
target_include_directories(pmkvq_shared INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_libraries(pmkvq_shared PRIVATE ${product_modules} INTERFACE Threads::Threads)
target_link_options(pmkvq_shared PRIVATE
  -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/shared_library.map -Wl,--no-undefined)
