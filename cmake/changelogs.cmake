# cmake -DSOURCE=DIR -DFOLDER=DIR -DVERSION=V -DMAINTAINER=M -P changelogs.cmake
#
# Writes FOLDER/changelog, a copy of CHANGELOG.md, and FOLDER/changelog.Debian, whose one entry has the
# day of SOURCE_DATE_EPOCH (today without it).
file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER})
file(COPY_FILE ${SOURCE}/CHANGELOG.md ${FOLDER}/changelog)
string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)
file(WRITE ${FOLDER}/changelog.Debian "pmkvq (${VERSION}) unstable; urgency=medium

  * Package of this version; changelog.gz lists its changes.

 -- ${MAINTAINER}  ${date}
")
