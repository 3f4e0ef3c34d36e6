<?php
// Runs inside the box: a warm PHP that forks a confined child for each program. What confine.py and server.py do for
// Python is done here for PHP; the server starts this and sends a line for each fork and each reaping.

function rerankjax_fork_server(array $setup): Closure
{
    $libc = FFI::cdef('
        int unshare(int flags); int setns(int fd, int type); int setsid(void); int close_range(unsigned, unsigned, int);
        int mount(const char *from, const char *to, const char *type, unsigned long flags, const char *data);
        int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
        int capset(const char *header, const char *data); int setrlimit(int resource, const char *limits);
        int open(const char *path, int flags, int mode); int dup3(int from, int to, int flags);
        long read(int fd, char *into, unsigned long count); long write(int fd, const char *from, unsigned long count);
        void _exit(int code); int *__errno_location(void);
        struct iovec { void *base; size_t length; };
        struct control { size_t length; int level; int type; int descriptors[3]; };
        struct message {
            void *name; unsigned name_length; struct iovec *vectors; size_t count;
            void *control; size_t control_length; int flags;
        };
        long recvmsg(int fd, struct message *message, int flags);', 'libc.so.6');
    $call = function (string $name, ...$arguments) use ($libc): int {
        $result = $libc->$name(...$arguments);
        if ($result < 0) {
            throw new RuntimeException("$name: error " . $libc->__errno_location()[0]);
        }
        return $result;
    };
    $own = $libc->open('/proc/self/ns/pid', 0, 0);
    $contained = $setup['filter'] !== '';
    $pid = 0;
    while (($line = fgets(STDIN)) !== false) {
        if ($line === "reap\n") {
            pcntl_waitpid($pid, $status, 0, $used);
            $code = pcntl_wifsignaled($status) ? -pcntl_wtermsig($status) : pcntl_wexitstatus($status);
            $seconds = $used['ru_utime.tv_sec'] + $used['ru_stime.tv_sec']
                + ($used['ru_utime.tv_usec'] + $used['ru_stime.tv_usec']) / 1e6;
            fwrite(STDOUT, "$code $seconds\n");
            continue;
        }
        $contained && $call('unshare', 0x20000000); // CLONE_NEWPID
        $pid = pcntl_fork();
        if ($pid === 0) {
            try {
                return rerankjax_child($libc, $call, $setup, hex2bin(trim($line)));
            } catch (Throwable $error) {
                $message = '?' . $error->getMessage();
                $libc->write($setup['outputs'][2], $message, strlen($message));
                exit(70);
            }
        }
        $contained && $call('setns', $own, 0x20000000);
        fwrite(STDOUT, "$pid\n");
    }
    exit(0);
}

/** Confines this process and takes the program; returns what to call at its end, with the word for the host. */
function rerankjax_child(FFI $libc, Closure $call, array $setup, string $nonce): Closure
{
    $call('setsid');
    if ($setup['filter'] !== '') {
        rerankjax_confine($call, $setup['limits'], hex2bin($setup['filter']));
    } else {
        mkdir((string) getmypid());
        chdir((string) getmypid());
    }
    [$stdout, $stderr, $status] = array_map(
        fn ($fd) => $call('open', "/proc/self/fd/$fd", 1 | 0x80000, 0), // O_WRONLY, O_CLOEXEC
        $setup['outputs']
    );
    $read = function (int $count) use ($libc, $setup): string {
        $data = '';
        $buffer = FFI::new('char[65536]');
        while (strlen($data) < $count) {
            $got = $libc->read($setup['requests'], $buffer, min(65536, $count - strlen($data)));
            if ($got <= 0) {
                return '';
            }
            $data .= FFI::string($buffer, $got);
        }
        return $data;
    };
    [$length, $ends] = rerankjax_receive($libc, $setup['requests']);
    if ($length === '') {
        $libc->write($status, '.', 1);
        exit(0);
    }
    $body = json_decode($read(unpack('N', $length . $read(4 - strlen($length)))[1]), true);
    if (!isset($body['source']) || file_put_contents('program.php', $body['source']) !== strlen($body['source'])) {
        throw new RuntimeException('the program was not written');
    }
    foreach ([0 => $ends[0], 1 => $stdout, 2 => $stderr, 3 => $status, 200 => $ends[1], 201 => $ends[2]] as $to => $from) {
        $call('dup3', $from, $to, $to < 3 ? 0 : 0x80000); // O_CLOEXEC
    }
    $libc->close_range(4, 199, 0);
    $libc->close_range(202, 0xffffffff, 0);
    rerankjax_tell(null, [fopen('php://fd/200', 'w'), fopen('php://fd/201', 'r')]);
    $libc->write(3, $body['keep_output'] ? '+' : '!', 1);
    return function (string $word, int $code) use ($libc, $nonce, $body): void {
        if ($word !== '') {
            $libc->write(3, $nonce . $word, strlen($nonce . $word));
        }
        if (!$body['keep_output'] && !preg_match('/__destruct|register_shutdown/i', $body['source'])) {
            while (ob_get_level()) {
                ob_end_flush();
            }
            $libc->_exit($code); // PHP's own exit writes to half of all memory, and each fork would copy it first
        }
    };
}

/** The first bytes of a request, at most 4, and the three descriptors that come with it. */
function rerankjax_receive(FFI $libc, int $requests): array
{
    $bytes = FFI::new('char[4]');
    $vector = $libc->new('struct iovec');
    $vector->base = FFI::cast('void *', FFI::addr($bytes));
    $vector->length = 4;
    $control = $libc->new('struct control');
    $message = $libc->new('struct message');
    $message->vectors = FFI::addr($vector);
    $message->count = 1;
    $message->control = FFI::cast('void *', FFI::addr($control));
    $message->control_length = FFI::sizeof($control);
    $got = $libc->recvmsg($requests, FFI::addr($message), 0x40000000); // MSG_CMSG_CLOEXEC
    return $got > 0 ? [FFI::string($bytes, $got), array_map(fn ($at) => $control->descriptors[$at], [0, 1, 2])] : ['', []];
}

/** Tells the host a value that a test is about, and waits until it has been found right. `$with` sets the streams. */
function rerankjax_tell(mixed $value, ?array $with = null): void
{
    static $streams;
    if ($with) {
        $streams = $with;
        return;
    }
    $text = function (mixed $value) use (&$text): string {
        if (is_array($value)) {
            $items = array_map(fn ($key, $item) => $text($key) . ':' . $text($item), array_keys($value), $value);
            return '{' . implode(',', $items) . '}';
        }
        return match (true) {
            is_null($value) => 'n',
            is_bool($value) => $value ? 'b1' : 'b0',
            is_int($value) => "i$value",
            is_float($value) => 'f' . (is_finite($value) ? sprintf('%.17e', $value) : strtolower("$value")),
            is_string($value) => 's' . bin2hex($value),
            default => '?',
        };
    };
    fwrite($streams[0], $text($value) . "\0");
    if (fread($streams[1], 1) !== "\n") {
        throw new Exception('Test failed!');
    }
}

/** Own mounts, hard limits, no capabilities, system calls filtered, or an exception. */
function rerankjax_confine(Closure $call, array $limits, string $rules): void
{
    $call('unshare', 0x00020000); // CLONE_NEWNS
    $sizes = "size={$limits['tmp_bytes']},nr_inodes=4096,mode=1777";
    $call('mount', 'tmpfs', '/tmp', 'tmpfs', 2 | 4, $sizes); // MS_NOSUID, MS_NODEV
    $call('mount', 'tmpfs', '/dev/shm', 'tmpfs', 2 | 4 | 8, $sizes); // and MS_NOEXEC
    $call('mount', 'proc', '/proc', 'proc', 1 | 2 | 4 | 8, ''); // and MS_RDONLY
    chdir('/tmp');
    $cpu = (int) ceil(2 * $limits['cpu_seconds']) + 1;
    $call('setrlimit', 0, pack('QQ', $cpu, $cpu)); // RLIMIT_CPU
    $call('setrlimit', 9, pack('QQ', $limits['memory_bytes'], $limits['memory_bytes'])); // RLIMIT_AS
    $call('capset', pack('Ll', 0x20080522, 0), str_repeat("\0", 24));
    $filter = FFI::new('char[' . strlen($rules) . ']');
    FFI::memcpy($filter, $rules, strlen($rules));
    $program = FFI::cdef()->new('struct { unsigned short count; char *rules; }');
    $program->count = intdiv(strlen($rules), 8);
    $program->rules = FFI::cast('char *', FFI::addr($filter));
    $address = FFI::cast('unsigned long', FFI::cast('char *', FFI::addr($program)))->cdata;
    $call('prctl', 22, 2, $address, 0, 0); // PR_SET_SECCOMP, SECCOMP_MODE_FILTER
}

$_rerankjax_end = rerankjax_fork_server(json_decode($argv[1], true));
$argv = $_SERVER['argv'] = ['program.php'];
$argc = $_SERVER['argc'] = 1;
foreach (['PHP_SELF', 'SCRIPT_NAME', 'SCRIPT_FILENAME', 'PATH_TRANSLATED'] as $_rerankjax_name) {
    $_SERVER[$_rerankjax_name] = 'program.php';
}
try {
    require getcwd() . '/program.php';
} catch (Throwable $_rerankjax_error) {
    $_rerankjax_kind = $_rerankjax_error instanceof ParseError ? 'Parse error: ' : 'Fatal error:  Uncaught';
    fwrite(STDERR, "PHP $_rerankjax_kind $_rerankjax_error\n");
    $_rerankjax_end('', 255);
    exit(255);
}
$_rerankjax_end('passed', 0);
