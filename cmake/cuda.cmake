# The CUDA backend, where it is asked for: PMKVQ_CUDA ON, or AUTO, which is ON where a CUDA compiler
# and cuBLASLt are found. Sets PMKVQ_HAS_CUDA. Both are the system's or those of PyPI's wheels
# (scripts/find-cuda.sh); -DCUDAToolkit_ROOT=FOLDER and -DPMKVQ_CUBLAS_ROOT=FOLDER name them.
set(PMKVQ_CUDA OFF CACHE STRING "Build the CUDA backend: ON, OFF, or AUTO (ON where nvcc is found)")
set_property(CACHE PMKVQ_CUDA PROPERTY STRINGS OFF ON AUTO)
set(PMKVQ_HAS_CUDA OFF)
if(NOT PMKVQ_CUDA MATCHES "^(ON|OFF|AUTO)$")
  message(FATAL_ERROR "PMKVQ_CUDA: found ${PMKVQ_CUDA}, expected ON, OFF or AUTO")
endif()
if(PMKVQ_CUDA STREQUAL "OFF")
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  find_program(PMKVQ_NVCC nvcc HINTS ${CUDAToolkit_ROOT}/bin /usr/local/cuda/bin)
  if(PMKVQ_NVCC)
    set(CMAKE_CUDA_COMPILER ${PMKVQ_NVCC})
  elseif(PMKVQ_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA: no nvcc; built without")
    return()
  else()
    message(FATAL_ERROR "PMKVQ_CUDA=ON: found no nvcc; scripts/find-cuda.sh --install gets one from "
      "PyPI, -DCUDAToolkit_ROOT=FOLDER names one, PMKVQ_CUDA=OFF builds without")
  endif()
endif()
# Code for each of them, and PTX of the last for chips to come.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;86-real;89-real;90")
endif()
enable_language(CUDA)
# CMake 3.25 does not know that nvcc 13 takes C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()
find_package(CUDAToolkit 13.0 REQUIRED)
include(${CMAKE_CURRENT_LIST_DIR}/cublas.cmake)
if(NOT TARGET pmkvq::cublasLt)
  set(problem "found no cuBLASLt 13 (include/cublasLt.h, lib/libcublasLt.so.13) in ")
  if(PMKVQ_CUBLAS_ROOT)
    string(APPEND problem "PMKVQ_CUBLAS_ROOT=${PMKVQ_CUBLAS_ROOT}")
  else()
    string(APPEND problem "the CUDA toolkit ${CUDAToolkit_BIN_DIR} and python3's packages")
  endif()
  if(PMKVQ_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA: ${problem}; built without")
    return()
  endif()
  message(FATAL_ERROR "PMKVQ_CUDA=ON: ${problem}; scripts/find-cuda.sh --install gets it from PyPI, "
    "-DPMKVQ_CUBLAS_ROOT=FOLDER names it, PMKVQ_CUDA=OFF builds without")
endif()
get_target_property(PMKVQ_CUBLASLT pmkvq::cublasLt IMPORTED_LOCATION)
# Installed programs find it where the built ones do.
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)
if(PMKVQ_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${PMKVQ_CCACHE})
endif()

add_library(pmkvq_cuda_options INTERFACE)
# -fmad=false: a fused multiply-add is used only where the code asks for it, as on the CPU. Warnings
# of conversions stay with host code.
target_compile_options(pmkvq_cuda_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:
  -fmad=false -t 2 -Xcompiler=-Wall,-Wextra,-ffp-contract=off
  -Xptxas=-warn-spills
  $<$<BOOL:${PMKVQ_WERROR}>:-Werror=all-warnings>>)
set(PMKVQ_HAS_CUDA ON)
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${CUDAToolkit_VERSION}, ${PMKVQ_CUBLASLT}, ${CMAKE_CUDA_ARCHITECTURES}")
