// Runs inside a box of its own: a warm TypeScript compiler, with type checking. It runs nothing of what it compiles.
//
// A request is 4 bytes of length and the source; the reply is 4 bytes of length and JSON. The declarations of the
// standard library are parsed and bound once, and only the program's own file is checked and emitted. There are no
// other declarations: with Node's the tests' own `declare var require` would be an error.
'use strict';
const fs = require('fs');
const ts = require(process.argv[2]);

const NAME = '/tmp/program.ts';
const options = { target: ts.ScriptTarget.ESNext, types: [], skipLibCheck: true };
const libraries = new Map();
let source;
let emitted;
let previous;

const host = ts.createCompilerHost(options);
const read = host.getSourceFile;
const directory = host.getDefaultLibLocation();
host.getSourceFile = (name, ...rest) => {
  if (name === NAME) return source;
  if (!name.startsWith(directory)) return undefined;
  if (!libraries.has(name)) libraries.set(name, read(name, ...rest));
  return libraries.get(name);
};
host.fileExists = (name) => name === NAME || name.startsWith(directory);
host.directoryExists = () => false;
host.getCurrentDirectory = () => '/tmp';
host.writeFile = (name, text) => { emitted = text; };

function compile(text) {
  emitted = '';
  source = ts.createSourceFile(NAME, text, { languageVersion: ts.ScriptTarget.ESNext }, false, ts.ScriptKind.TS);
  const program = ts.createProgram([NAME], options, host, previous);
  previous = program;
  const problems = [...program.getSyntacticDiagnostics(source), ...program.getGlobalDiagnostics()];
  if (!problems.length) problems.push(...program.getSemanticDiagnostics(source));
  program.emit(source);
  const log = problems.length ? ts.formatDiagnostics(problems.slice(0, 5), {
    getCanonicalFileName: (name) => name, getCurrentDirectory: () => '/tmp', getNewLine: () => '\n',
  }) : '';
  return { succeeded: !problems.length, log, program: emitted };
}

function take(count) {
  const bytes = Buffer.alloc(count);
  for (let at = 0; at < count;) {
    const got = fs.readSync(0, bytes, at, count - at, null);
    if (!got) process.exit(0);
    at += got;
  }
  return bytes;
}

function give(bytes) {
  for (let at = 0; at < bytes.length;) at += fs.writeSync(1, bytes, at);
}

for (;;) {
  const text = take(take(4).readUInt32BE()).toString('utf8');
  let result;
  try {
    result = compile(text);
  } catch (error) { // a deeply nested program overflows the compiler's stack
    previous = undefined;
    result = { succeeded: false, log: `tsc: ${error}`, program: '' };
  }
  const reply = Buffer.from(JSON.stringify(result));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(reply.length);
  give(length);
  give(reply);
}
