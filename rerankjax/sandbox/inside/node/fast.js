// Runs inside a box of its own: many programs in one node, each in a vm context. A context does not isolate programs
// from each other. So the host uses this mode only to find wrong values, and runs every other program again in a node of
// its own.
//
// A request is 4 bytes of length and the source; the reply is 4 bytes of length and JSON.
'use strict';
const fs = require('fs');
const vm = require('vm');
const { said } = require('./tell.js');

const timeout = Number(process.argv[2]); // ms
const silent = Object.fromEntries(Object.keys(console).map((name) => [name, () => {}]));

function run(text) {
  const module = { exports: {} };
  const told = [];
  const rerankjaxTell = (value) => { told.push(said(value)); };
  const context = vm.createContext({
    require, module, exports: module.exports, console: silent, process, Buffer, URL, URLSearchParams, TextEncoder,
    TextDecoder, structuredClone, setTimeout, clearTimeout, setInterval, clearInterval, setImmediate, queueMicrotask,
    rerankjaxTell,
  });
  try {
    vm.runInContext(text, context, { filename: 'program.js', timeout });
  } catch {
    // values that were sent before may be wrong
  }
  return { told };
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

for (;;) {
  const reply = Buffer.from(JSON.stringify(run(take(take(4).readUInt32BE()).toString('utf8'))));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(reply.length);
  for (const bytes of [length, reply]) {
    for (let at = 0; at < bytes.length;) at += fs.writeSync(1, bytes, at);
  }
}
