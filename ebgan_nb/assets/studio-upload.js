// A button that sends pictures, one after the other and each in pieces, so that no server's limit on one message cuts it off.
// Trait: megabytes, the most that a file may have; what is larger is reported and not sent.

const STEP = 1 << 20 // letters in a message

const text_of = file => new Promise(done => {
  const reader = new FileReader()
  reader.onload = () => done(reader.result.split(',')[1] || '')
  reader.onerror = () => done('') // a file that cannot be read is as good as an empty one
  reader.readAsDataURL(file)
})

function render({ model, el }) {
  const input = document.createElement('input'), label = document.createElement('label'), words = document.createElement('span')
  Object.assign(input, {type: 'file', accept: 'image/*', multiple: true, title: 'Choose pictures of your own'})
  const say = text => { words.textContent = text }
  say('Upload ...')
  label.className = 'eb-upload'
  label.append(words, input)
  el.append(label)

  input.onchange = async () => {
    const files = [...input.files]
    for (const [k, file] of files.entries()) {
      const about = {name: file.name, more: files.length - 1 - k}
      say(`Sending ${k + 1} of ${files.length}`)
      if (file.size > model.get('megabytes')*2**20) { model.send({...about, size: file.size}); continue }
      const text = await text_of(file)
      for (let at = 0; at === 0 || at < text.length; at += STEP)
        model.send({...about, at, text: text.slice(at, at + STEP), last: at + STEP >= text.length})
    }
    input.value = '' // the same file may be chosen again
    say('Upload ...')
  }
}

export default { render }
