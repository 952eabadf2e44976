# cmake -DPROGRAM=FILE -DSOURCE=DIR -DVERSION=V -DOUTPUT=FILE -P sbom.cmake
#
# Writes what the program is made of as SPDX 2.3 (JSON): the Debian packages of the shared libraries
# that it links (from its NEEDED entries, by dpkg), the packages whose headers are compiled in, and
# third_party. Same inputs, same bytes: packages are sorted, the time is SOURCE_DATE_EPOCH, and the
# document's name space has the program's hash.
cmake_policy(SET CMP0057 NEW)
find_program(objdump objdump REQUIRED)
find_program(dpkg_query dpkg-query REQUIRED)

execute_process(COMMAND ${objdump} -p ${PROGRAM} OUTPUT_VARIABLE headers COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "NEEDED +[^\n ]+" needed "${headers}")
list(TRANSFORM needed REPLACE "NEEDED +" "")
list(SORT needed)
# Libraries lie in the folders of the linker; alternatives (OpenBLAS) behind a link.
file(GLOB folders LIST_DIRECTORIES true /lib/*-linux-gnu /usr/lib/*-linux-gnu
  /usr/lib/*-linux-gnu/openblas-pthread /lib /lib64 /usr/lib)
set(linked "")
foreach(library IN LISTS needed)
  set(owner "")
  foreach(folder IN LISTS folders)
    if(NOT EXISTS ${folder}/${library})
      continue()
    endif()
    file(REAL_PATH ${folder}/${library} file)
    foreach(name ${file} ${folder}/${library})
      # dpkg knows the names from before /lib became a link, too.
      string(REGEX REPLACE "^/usr" "" short ${name})
      foreach(candidate ${name} ${short})
        execute_process(COMMAND ${dpkg_query} -S ${candidate} OUTPUT_VARIABLE found ERROR_QUIET
          RESULT_VARIABLE failed)
        if(NOT failed)
          string(REGEX MATCH "^[^:,\n]+" owner "${found}")
          break()
        endif()
      endforeach()
      if(owner)
        break()
      endif()
    endforeach()
    if(owner)
      break()
    endif()
  endforeach()
  if(NOT owner)
    message(FATAL_ERROR "sbom.cmake: found no Debian package that owns ${library}")
  endif()
  list(APPEND linked ${owner})
endforeach()
list(REMOVE_DUPLICATES linked)
list(SORT linked)

# Headers only: their code is in the program.
set(compiled_in "")
foreach(header rapidjson/document.h CLI/CLI.hpp boost/asio.hpp)
  execute_process(COMMAND ${dpkg_query} -S /usr/include/${header} OUTPUT_VARIABLE found ERROR_QUIET
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "sbom.cmake: found no Debian package that owns /usr/include/${header}")
  endif()
  string(REGEX MATCH "^[^:,\n]+" owner "${found}")
  list(APPEND compiled_in ${owner})
endforeach()
list(SORT compiled_in)

function(add_package name version supplier license location relation)
  string(MAKE_C_IDENTIFIER "${name}" id)
  string(REPLACE "_" "-" id "${id}")
  string(APPEND packages ",
    {
      \"SPDXID\": \"SPDXRef-${id}\",
      \"name\": \"${name}\",
      \"versionInfo\": \"${version}\",
      \"supplier\": \"${supplier}\",
      \"downloadLocation\": \"NOASSERTION\",
      \"filesAnalyzed\": false,
      \"licenseConcluded\": \"NOASSERTION\",
      \"licenseDeclared\": \"${license}\",
      \"copyrightText\": \"NOASSERTION\"")
  if(location)
    string(APPEND packages ",
      \"externalRefs\": [
        {
          \"referenceCategory\": \"PACKAGE-MANAGER\",
          \"referenceType\": \"purl\",
          \"referenceLocator\": \"${location}\"
        }
      ]")
  endif()
  string(APPEND packages "\n    }")
  string(APPEND relations ",
    {
      \"spdxElementId\": \"SPDXRef-pmkvq\",
      \"relationshipType\": \"${relation}\",
      \"relatedSpdxElement\": \"SPDXRef-${id}\"
    }")
  set(packages "${packages}" PARENT_SCOPE)
  set(relations "${relations}" PARENT_SCOPE)
endfunction()

function(field name package result)
  execute_process(COMMAND ${dpkg_query} -W -f "\${${name}}\n" ${package} OUTPUT_VARIABLE value
    COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCH "^[^\n]*" value "${value}")
  string(REPLACE "\"" "\\\"" value "${value}")
  set(${result} "${value}" PARENT_SCOPE)
endfunction()

execute_process(COMMAND sh -c ". /etc/os-release && echo $ID-$VERSION_ID"
  OUTPUT_VARIABLE system OUTPUT_STRIP_TRAILING_WHITESPACE)
set(packages "")
set(relations "")
foreach(kind linked compiled_in)
  foreach(package IN LISTS ${kind})
    field(Version ${package} version)
    field(Architecture ${package} architecture)
    field(source:Package ${package} source)
    field(Maintainer ${package} maintainer)
    # An address in a supplier stands in round brackets.
    string(REGEX REPLACE "<(.*)>" "(\\1)" maintainer "${maintainer}")
    string(REPLACE "+" "%2B" escaped "${version}")
    string(REPLACE ":" "%3A" escaped "${escaped}")
    set(relation DYNAMIC_LINK)
    if(kind STREQUAL compiled_in)
      set(relation STATIC_LINK)
    endif()
    add_package(${package} "${version}" "Organization: ${maintainer}" NOASSERTION
      "pkg:deb/debian/${package}@${escaped}?arch=${architecture}&distro=${system}&upstream=${source}"
      ${relation})
  endforeach()
endforeach()
# Copied into this repository: one folder a work, whose README.md names the version.
file(GLOB parts LIST_DIRECTORIES true ${SOURCE}/third_party/*)
list(SORT parts)
foreach(part IN LISTS parts)
  get_filename_component(name ${part} NAME)
  file(STRINGS ${part}/README.md text)
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" version "${text}")
  file(STRINGS ${part}/LICENSE.md license)
  set(id NOASSERTION)
  if(license MATCHES "MIT")
    set(id MIT)
  endif()
  if(NOT version)
    message(FATAL_ERROR "sbom.cmake: ${part}/README.md names no version")
  endif()
  add_package(${name} ${version} NOASSERTION ${id} "pkg:npm/${name}@${version}" CONTAINS)
endforeach()

file(SHA256 ${PROGRAM} hash)
string(TIMESTAMP created "%Y-%m-%dT%H:%M:%SZ" UTC)
file(WRITE ${OUTPUT} "{
  \"spdxVersion\": \"SPDX-2.3\",
  \"dataLicense\": \"CC0-1.0\",
  \"SPDXID\": \"SPDXRef-DOCUMENT\",
  \"name\": \"pmkvq-${VERSION}\",
  \"documentNamespace\": \"urn:pmkvq:${VERSION}:${hash}\",
  \"creationInfo\": {
    \"created\": \"${created}\",
    \"creators\": [\"Tool: pmkvq-cmake/sbom.cmake\"]
  },
  \"packages\": [
    {
      \"SPDXID\": \"SPDXRef-pmkvq\",
      \"name\": \"pmkvq\",
      \"versionInfo\": \"${VERSION}\",
      \"supplier\": \"Organization: pmkvq maintainers\",
      \"downloadLocation\": \"NOASSERTION\",
      \"filesAnalyzed\": false,
      \"licenseConcluded\": \"Apache-2.0\",
      \"licenseDeclared\": \"Apache-2.0\",
      \"copyrightText\": \"NOASSERTION\",
      \"checksums\": [
        {
          \"algorithm\": \"SHA256\",
          \"checksumValue\": \"${hash}\"
        }
      ]
    }${packages}
  ],
  \"relationships\": [
    {
      \"spdxElementId\": \"SPDXRef-DOCUMENT\",
      \"relationshipType\": \"DESCRIBES\",
      \"relatedSpdxElement\": \"SPDXRef-pmkvq\"
    }${relations}
  ]
}
")
