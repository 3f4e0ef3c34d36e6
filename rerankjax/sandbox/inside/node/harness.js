// Runs inside the box: program.js as node's main module. Reads the word that reports a pass before the program starts,
// and sends it to the host when the program's last line has run.
'use strict';
const fs = require('fs');
const { Module } = require('module');
const path = require('path');

const { writeSync } = fs;
const word = Buffer.alloc(64);
const length = fs.readSync(201, word);
const program = path.resolve('program.js');
process.argv.splice(1, 1, program);
Module._load(program, null, true);
writeSync(200, word, 0, length);
