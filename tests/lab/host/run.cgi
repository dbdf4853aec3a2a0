#!/bin/busybox sh
# The command channel: runs one command, whose standard input is the request's body.
# Query: <token>.<command in base64>. Reply: "pid N", the output, then "<token> exit N".
# The token tells the true end from output that looks like one; no token means that the host died.
printf 'Content-Type: application/octet-stream\r\n\r\n'
token=${QUERY_STRING%%.*}
command=$(echo "${QUERY_STRING#*.}" | base64 -d)
unset QUERY_STRING GATEWAY_INTERFACE REQUEST_METHOD CONTENT_LENGTH CONTENT_TYPE
cd /root
# A session of its own, so that the caller can kill the command with all its children.
setsid sh -c 'echo "pid $$"; exec sh -c "$0" 2>&1' "$command"
printf '%s exit %d\n' "$token" $?
