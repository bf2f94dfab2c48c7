# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# The bash-completion package, which reads a command's completions when they are first asked for, is
# not in the image. This does so for selvage; a log-in costs nothing.
if [ -n "${BASH_VERSION-}" ]; then
    _selvage_load() {
        # 124: asks bash to complete again, by what is defined now.
        # shellcheck source=/dev/null
        . /usr/share/bash-completion/completions/selvage && return 124
    }
    complete -F _selvage_load selvage
fi
