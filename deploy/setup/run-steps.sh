#!/usr/bin/env bash
# Runs named steps in order and says, on the last line, whether all of them passed.
#
#   run-steps.sh TITLE NAME COMMAND [NAME COMMAND]...
#
# A step that fails does not stop the ones after it: one run shows everything that is wrong.
#
# "beside: NAME" runs beside the steps after it, with its output kept until it ends; "wait for: NAME"
# (its command is not used) is where it must have ended.
set -uo pipefail

title=$1
shift
failed=()
started_s=$SECONDS

beside_name='' beside_pid='' beside_output=''
end_beside() {
    [[ -z $beside_pid ]] && return
    local step_started_s=$SECONDS
    wait "$beside_pid" || failed+=("$beside_name")
    cat "$beside_output"
    printf -- '--- %s was waited for %d s\n' "$beside_name" $((SECONDS - step_started_s))
    rm -f "$beside_output"
    beside_pid=''
}

# In a session of its own, and ended with this: a shell in the background ignores Ctrl-C.
trap '[[ -n $beside_pid ]] && kill -- "-$beside_pid"; rm -f "$beside_output"' EXIT

while (($# >= 2)); do
    name=$1 command=$2
    shift 2
    if [[ $name == 'wait for: '* ]]; then
        end_beside
        continue
    fi
    printf -- '--- %s: %s\n' "$name" "$command"
    if [[ $name == 'beside: '* ]]; then
        end_beside
        beside_name=${name#beside: } beside_output=$(mktemp)
        setsid bash -c "$command" >"$beside_output" 2>&1 &
        beside_pid=$!
        continue
    fi
    step_started_s=$SECONDS
    if ! bash -c "$command"; then
        failed+=("$name")
    fi
    printf -- '--- %s took %d s\n' "$name" $((SECONDS - step_started_s))
done
end_beside

took_s=$((SECONDS - started_s))
if ((${#failed[@]})); then
    printf '%s: FAILED (%s) after %d s\n' "$title" "$(IFS=,; echo "${failed[*]}")" "$took_s"
    exit 1
fi
printf '%s: all passed in %d s\n' "$title" "$took_s"
