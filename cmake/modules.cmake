# One static library and one unit-test program per module.
#
#   pmkvq_add_module(<name> FOLDER <folder, default: the name> DEPENDS <modules...>
#                    LIBRARIES <private third-party targets...>
#                    TEST_LIBRARIES <targets that only its tests use...>)
#
# Sources are every .cc below the module's folder but *_test.cc (the unit tests) and *_bench.cc, and
# but the files of backends, which backends.cmake lists. *_cuda_test.cc are the tests that want a
# device: a program of their own, with the label gpu, in builds with CUDA.
include(${CMAKE_CURRENT_LIST_DIR}/backends.cmake)

add_library(pmkvq_options INTERFACE)
target_compile_features(pmkvq_options INTERFACE cxx_std_20)
target_compile_options(pmkvq_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:
  -Wall -Wextra -Wconversion -Wshadow $<$<BOOL:${PMKVQ_WERROR}>:-Werror>
  # GCC 12 reports impossible overlaps inside std::string; clang 19 that libstdc++ 12's std::stable_sort
  # calls a deprecated function.
  $<$<CXX_COMPILER_ID:Clang>:-Wno-error=deprecated-declarations>
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict> -fno-math-errno -ffp-contract=off>)
# Highway compiles its kernels for these instruction sets and picks one at run time: plain C++, SSE4,
# AVX2 and AVX-512 (or NEON). Newer compilers make Highway take EMU128 for plain C++, and Highway 1.1
# added targets: without these settings the same program would run other instruction sets on Debian 13
# than on Debian 12.
set(PMKVQ_DISABLED_TARGETS "HWY_SSSE3|HWY_AVX3_DL|HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128")
if(HWY_VERSION VERSION_GREATER_EQUAL 1.1)
  string(APPEND PMKVQ_DISABLED_TARGETS "|HWY_SSE2|HWY_AVX3_ZEN4|HWY_AVX3_SPR")
endif()
target_compile_definitions(pmkvq_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:HWY_BROKEN_EMU128=1>
  "$<$<COMPILE_LANGUAGE:CXX>:HWY_DISABLED_TARGETS=(${PMKVQ_DISABLED_TARGETS})>")
if(PMKVQ_REPRODUCIBLE)
  # Messages of failed checks name source files.
  target_compile_options(pmkvq_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:
    -ffile-prefix-map=${PROJECT_SOURCE_DIR}=. -ffile-prefix-map=${PROJECT_BINARY_DIR}=build>)
endif()
if(PMKVQ_SANITIZE)
  target_compile_options(pmkvq_options INTERFACE
    -fsanitize=${PMKVQ_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(pmkvq_options INTERFACE -fsanitize=${PMKVQ_SANITIZE})
endif()
if(PMKVQ_COVERAGE)
  target_compile_options(pmkvq_options INTERFACE --coverage -O1 -fprofile-update=atomic)
  target_link_options(pmkvq_options INTERFACE --coverage)
endif()

set(PMKVQ_MODULES "" CACHE INTERNAL "")

# In seconds. The longest unit tests take some 20 s, with sanitizers and on a busy machine minutes.
set(PMKVQ_TEST_TIMEOUT 600)

if(PMKVQ_BUILD_TESTS AND PMKVQ_HAS_CUDA)
  add_custom_target(gpu_tests)  # The programs with the label gpu.
endif()
if(PMKVQ_BUILD_TESTS)
  # PMKVQ_TARGET=SSE4 chooses the instruction set of a test program.
  add_library(pmkvq_process_target OBJECT ${PROJECT_SOURCE_DIR}/tests/support/process_target.cc)
  target_include_directories(pmkvq_process_target PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(pmkvq_process_target PUBLIC pmkvq_options GTest::gtest PkgConfig::HWY)
endif()

function(pmkvq_add_module name)
  cmake_parse_arguments(ARG "PROGRAM_ONLY" "FOLDER" "DEPENDS;LIBRARIES;PUBLIC_LIBRARIES;TEST_LIBRARIES" ${ARGN})
  if(NOT ARG_FOLDER)
    set(ARG_FOLDER ${name})
  endif()
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${ARG_FOLDER}/*.cc)
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_(test|bench)\\.cc$")
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  set(cuda_tests ${tests})
  list(FILTER tests EXCLUDE REGEX "_cuda_test\\.cc$")
  list(FILTER cuda_tests INCLUDE REGEX "_cuda_test\\.cc$")
  set(backend_files ${sources})
  list(FILTER sources EXCLUDE REGEX "_(cpu|cuda|cuda_stub)\\.cc$")
  list(FILTER backend_files INCLUDE REGEX "_(cpu|cuda|cuda_stub)\\.cc$")
  file(GLOB_RECURSE cuda_files CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${ARG_FOLDER}/*.cu)
  foreach(backend CPU_SOURCES CUDA_SOURCES CUDA_STUBS)
    set(${backend} ${PMKVQ_${backend}_${name}})
    list(TRANSFORM ${backend} PREPEND ${PROJECT_SOURCE_DIR}/src/pmkvq/)
  endforeach()
  foreach(file IN LISTS backend_files cuda_files)
    if(NOT file IN_LIST CPU_SOURCES AND NOT file IN_LIST CUDA_SOURCES AND
       NOT file IN_LIST CUDA_STUBS)
      message(FATAL_ERROR "${file} belongs to a backend, but cmake/backends.cmake does not list it")
    endif()
  endforeach()
  list(APPEND sources ${CPU_SOURCES})
  if(PMKVQ_HAS_CUDA)
    list(APPEND sources ${CUDA_SOURCES})
  else()
    list(APPEND sources ${CUDA_STUBS})
  endif()

  if(NOT sources)
    file(WRITE ${PROJECT_BINARY_DIR}/empty_${name}.cc "namespace pmkvq {}\n")
    set(sources ${PROJECT_BINARY_DIR}/empty_${name}.cc)
  endif()
  add_library(pmkvq_${name} STATIC ${sources})
  set_target_properties(pmkvq_${name} PROPERTIES EXPORT_NAME ${name})
  if(NOT ARG_PROGRAM_ONLY)
    # It may become part of a shared object, Python's extension, which exports its init function only. One
    # kind of objects serves that and programs; hidden symbols cost programs nothing.
    set_target_properties(pmkvq_${name} PROPERTIES
      POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
    if(BUILD_SHARED_LIBS)
      # libpmkvq.so exports what shared_library.map lets through.
      set_target_properties(pmkvq_${name} PROPERTIES CXX_VISIBILITY_PRESET default)
    endif()
  endif()
  target_include_directories(pmkvq_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  list(TRANSFORM ARG_DEPENDS PREPEND pmkvq_)
  target_link_libraries(pmkvq_${name}
    PUBLIC ${ARG_DEPENDS} ${ARG_PUBLIC_LIBRARIES}
    PRIVATE ${ARG_LIBRARIES} fmt::fmt $<BUILD_INTERFACE:pmkvq_options>)
  if(PMKVQ_HAS_CUDA AND CUDA_SOURCES)
    target_link_libraries(pmkvq_${name}
      PRIVATE CUDA::cudart_static $<BUILD_INTERFACE:pmkvq_cuda_options>)
  endif()
  # "research:" marks the modules of the second library.
  string(REGEX MATCH "^research" library ${ARG_FOLDER})
  string(REPLACE "research" "research:" library "${library}")
  if(NOT ARG_PROGRAM_ONLY)
    set(PMKVQ_MODULES ${PMKVQ_MODULES} ${library}pmkvq_${name} CACHE INTERNAL "")
  endif()

  if(NOT PMKVQ_HAS_CUDA)
    set(cuda_tests "")
  endif()
  foreach(kind tests cuda_tests)
    if(NOT PMKVQ_BUILD_TESTS OR NOT ${kind})
      continue()
    endif()
    set(program pmkvq_${name}_test)
    set(properties LABELS unit)
    if(kind STREQUAL "cuda_tests")
      set(program pmkvq_${name}_cuda_test)
      set(properties LABELS gpu)
      add_dependencies(gpu_tests ${program})
    endif()
    add_executable(${program} ${${kind}})
    if(TARGET pmkvq_kernels)
      target_link_libraries(${program} PRIVATE pmkvq_process_target)
    endif()
    target_link_libraries(${program} PRIVATE
      pmkvq_${name} pmkvq_options GTest::gtest_main rapidcheck fmt::fmt ${ARG_LIBRARIES}
      ${ARG_TEST_LIBRARIES})
    target_include_directories(${program} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
    # Optimising test code costs more time than it saves.
    target_compile_options(${program} PRIVATE $<$<CONFIG:Release>:-O1>)
    # Only where it is used: a compiler cache that several checkouts share then knows the other tests.
    foreach(test ${${kind}})
      file(STRINGS ${test} uses REGEX "PMKVQ_SOURCE_DIR|(engine_fixture|engine_stress|sentencepiece_golden|method_golden)\\.h" LIMIT_COUNT 1)
      if(uses)
        set_property(SOURCE ${test} APPEND PROPERTY
          COMPILE_DEFINITIONS PMKVQ_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
      endif()
    endforeach()
    gtest_discover_tests(${program}
      DISCOVERY_MODE PRE_TEST PROPERTIES ${properties} TIMEOUT ${PMKVQ_TEST_TIMEOUT})
  endforeach()
endfunction()
