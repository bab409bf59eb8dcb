// Code that a compiler at run time makes hot, changes its mind about, and collects.
'use strict';
const crypto = require('crypto');
const zlib = require('zlib');
const { Worker, isMainThread, workerData, parentPort } = require('worker_threads');

let state = 123456789;
const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
};
const sha = (data) => crypto.createHash('sha256').update(data).digest('hex');

function numbers() {
    const size = 1 << 15;
    const floats = new Float64Array(size);
    const ints = new Int32Array(size);
    for (let i = 0; i < size; i++) {
        floats[i] = Math.sqrt(next()) / 7;
        ints[i] = next() | 0;
    }
    let folded = 0;
    for (let turn = 0; turn < 30; turn++) {
        for (let i = 1; i < size; i++) {
            ints[i] = Math.imul(ints[i], 31) + (ints[i - 1] >> 3) ^ turn;
            floats[i] = floats[i] * 0.999 + floats[i - 1] * 0.001;
            folded = (folded + ints[i]) | 0;
        }
    }
    return [folded, sha(Buffer.from(ints.buffer)), sha(Buffer.from(floats.buffer))];
}

// The same site sees numbers, then text, then objects: code is thrown away and made again.
function shapes() {
    const add = (a, b) => a.v + b.v;
    let out = '';
    const makers = [(i) => ({ v: i }), (i) => ({ w: 1, v: i + 0.5 }), (i) => ({ v: 's' + i }), (i) => ({ v: BigInt(i) })];
    for (const make of makers) {
        let last = null;
        for (let i = 0; i < 20000; i++) {
            last = add(make(i), make(i + 1));
        }
        out += String(last) + ' ';
    }
    return out;
}

function big() {
    let x = 1n;
    for (let i = 1n; i <= 800n; i++) x *= i;
    return sha(x.toString());
}

function text() {
    const words = [];
    for (let i = 0; i < 20000; i++) words.push('w' + (next() % 5000).toString(36));
    const counts = new Map();
    for (const word of words) counts.set(word, (counts.get(word) || 0) + 1);
    const sorted = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
    const replaced = words.join(' ').replace(/w([0-9a-z])(\w*)/g, (_, a, b) => b + a);
    return sha(JSON.stringify(sorted) + replaced);
}

function garbage() {
    let kept = [];
    let total = 0;
    for (let i = 0; i < 300000; i++) {
        const object = { i, list: [i, i + 1], text: 'x' + (i % 10) };
        total += object.list[1];
        if (i % 1000 === 0) kept.push(object);
    }
    return [total, kept.length, kept[77].text];
}

// (module (func (export "f") (param i32) (result i32) ...)): a loop that sums i * i. Whether it does.
function wasm() {
    let sum = 0;
    for (let i = 100000; i > 0; i--) sum = (sum + Math.imul(i, i)) | 0;
    // Without a compiler there is no WebAssembly.
    if (typeof WebAssembly === 'undefined') return sum;
    const bytes = Buffer.from(
        '0061736d01000000' + '01060160017f017f' + '03020100' + '07050101660000' + '0a1e011c' + '01017f' +
        '0340' + '2000' + '2000' + '6c' + '2001' + '6a' + '2101' + '2000' + '4101' + '6b' + '2200' + '0d00' + '0b' +
        '2001' + '0b', 'hex');
    return new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports.f(100000);
}

if (isMainThread) {
    const data = Buffer.from(Array.from({ length: 200000 }, () => next() & 0x3f));
    const packed = zlib.deflateSync(data);
    console.log(sha(data), sha(packed), zlib.inflateSync(packed).equals(data));
    console.log(numbers().join(' '));
    console.log(shapes());
    console.log(big());
    console.log(text());
    console.log(garbage().join(' '));
    console.log(wasm());
    // Threads that share memory.
    const shared = new Int32Array(new SharedArrayBuffer(8));
    let running = 3;
    for (let id = 0; id < 3; id++) {
        const worker = new Worker(__filename, { workerData: { shared, id } });
        worker.on('exit', () => {
            if (--running === 0) console.log(shared[0], shared[1]);
        });
    }
} else {
    for (let i = 0; i < 20000; i++) {
        Atomics.add(workerData.shared, 0, workerData.id + 1);
        Atomics.xor(workerData.shared, 1, i * (workerData.id + 1));
    }
}
