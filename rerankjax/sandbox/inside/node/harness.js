// Runs inside the box: program.js as node's main module, then control.js, the same with one assertion made wrong.
//
// Standard input holds the word that tells the host of a pass: it is gone before the program starts. With the argument
// "output" standard input is the program's, for its output decides.
'use strict';
const fs = require('fs');
const { Module } = require('module');
const path = require('path');

const byOutput = process.argv[2] === 'output';
const word = byOutput ? '' : fs.readFileSync(0);
const [program, control] = ['program.js', 'control.js'].map((name) => path.resolve(name));
process.argv.splice(1, 2, program);
const { writeSync } = fs;
const { _compile } = Module.prototype;
let wrong;
if (fs.existsSync(control)) {
  wrong = fs.readFileSync(control, 'utf8');
  fs.unlinkSync(control);
}

Module._load(program, null, true);
if (!byOutput) {
  let caught = false;
  if (wrong !== undefined) {
    const streams = [process.stdout, process.stderr].filter((stream) => !Object.hasOwn(stream, 'write'));
    for (const stream of streams) stream.write = () => true;
    try {
      const module = new Module(program, null);
      module.filename = program;
      module.paths = [];
      _compile.call(module, wrong, program);
      caught = true;
    } catch {
      // as it should
    }
    for (const stream of streams) delete stream.write;
  }
  writeSync(3, caught ? 'caught' : word);
}
