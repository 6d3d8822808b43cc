# The shell of guest and lab: executes what arrives on the second serial port.
#
# ttyS0 is the kernel's console, nothing else writes there once this script runs. ttyS1 carries the tests' commands:
#   in:   ID BASE64(script)                one line
#   out:  >ID STATUS                       when the script has ended, then what it printed, as base64, then
#         <ID
# Scripts run beside each other, so that one that hangs in the kernel does not stop the next. READY says that a boot
# has come to its end.

stty -F /dev/ttyS1 raw -echo -icanon min 1 time 0
exec 3<> /dev/ttyS1
mkfifo /run/ended

# One writer for all answers keeps them apart. Opened for both directions the FIFO never reports an end.
while read -r id status; do
    echo ">$id $status"
    base64 "/run/$id.out"
    echo "<$id"
    rm -f "/run/$id.out" "/run/$id.sh"
done <> /run/ended >&3 &

# The empty line ends whatever an earlier boot had begun to say when it was reset.
printf '\nREADY %s %s\n' "$(cut -d ' ' -f 1 /proc/uptime)" "$(uname -r)" >&3
# The line is read in a shell that has no children: ash's read forgets what it has when a child's end interrupts it.
while request=$(read -r line <&3 && echo "$line"); do
    id=${request%% *}
    echo "${request#* }" | base64 -d > "/run/$id.sh"
    (
        exec 3>&-
        sh "/run/$id.sh" < /dev/null > "/run/$id.out" 2>&1
        echo "$id $?" > /run/ended
    ) &
done
