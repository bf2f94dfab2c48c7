# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Loads the completions of selvage at the first Tab, as the bash-completion package does, which is not
# in the image. Costs nothing at login.
if [ -n "${BASH_VERSION-}" ]; then
    _selvage_load() {
        # 124 makes bash retry with the completions just loaded.
        # shellcheck source=/dev/null
        . /usr/share/bash-completion/completions/selvage && return 124
    }
    complete -F _selvage_load selvage
fi
