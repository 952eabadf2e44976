# BUILD_SHARED_LIBS: what generates text as one libpmkvq.so.0.1; static libraries and pmkvq::research are
# not installed then. The ABI is not promised before 1.0, so each minor version has its own name. The
# program keeps its static libraries.
add_library(pmkvq_shared SHARED)
set(libraries "")
foreach(module IN LISTS product_modules)
  target_sources(pmkvq_shared PRIVATE $<TARGET_OBJECTS:${module}>)
  get_target_property(of_module ${module} LINK_LIBRARIES)
  list(APPEND libraries ${of_module})
endforeach()
list(REMOVE_ITEM libraries ${product_modules})
list(REMOVE_DUPLICATES libraries)
set_target_properties(pmkvq_shared PROPERTIES OUTPUT_NAME pmkvq EXPORT_NAME shared LINKER_LANGUAGE CXX
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/shared_library.map)
target_compile_features(pmkvq_shared INTERFACE cxx_std_20)
target_include_directories(pmkvq_shared INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_libraries(pmkvq_shared PRIVATE ${libraries} INTERFACE Threads::Threads)
target_link_options(pmkvq_shared PRIVATE
  -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/shared_library.map -Wl,--no-undefined)
