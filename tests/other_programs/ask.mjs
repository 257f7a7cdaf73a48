// Loads a model with node-llama-cpp, prints the tokens of its answers as JSON, and waits for commands on stdin.
//
// usage: ask.mjs FOLDER MODEL      FOLDER contains node_modules
//        free                      frees the model, and prints "freed"
//        exit                      calls process.exit(7)
//        end of stdin              returns from the program

import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const [folder, path] = process.argv.slice(2);
const entry = `${folder}/node_modules/node-llama-cpp/dist/index.js`;
const {getLlama} = await import(pathToFileURL(entry).href);

const llama = await getLlama({build: "never", gpu: false, skipDownload: true, logLevel: "debug", maxThreads: 2});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: 512, threads: 2});
const sequence = context.getSequence();

const answers = [];
for (const prompt of ["Once upon a time", "The answer is", "In the beginning"]) {
    const tokens = [];
    for await (const token of sequence.evaluate(model.tokenize(prompt), {temperature: 0})) {
        tokens.push(token);
        if (tokens.length === 12)
            break;
    }
    answers.push(tokens);
    await sequence.clearHistory();
}
console.log(JSON.stringify(answers));

for await (const line of createInterface({input: process.stdin})) {
    if (line === "free") {
        await context.dispose();
        await model.dispose();
        console.log("freed");
    } else if (line === "exit") {
        process.exit(7);
    }
}
